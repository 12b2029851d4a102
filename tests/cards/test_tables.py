"""Facts as tables: every number shows, what is too deep stays in the record, unknown facts are absent."""

from hf_sane.cards._tables import fact_table, fact_text, markdown_table, result_tables


def test_a_table_escapes_its_separator():
    assert markdown_table(["a", "b"], [["x|y", "1"]]) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"


def test_columns_of_numbers_are_set_to_the_right():
    assert markdown_table(["a", "b"], [["x", "1"]], numbers=True) == "| a | b |\n| --- | ---: |\n| x | 1 |"


def test_facts_are_one_table_of_dotted_names():
    table = fact_table({"split": {"train": 70}, "seed": 0, "unknown": None, "empty": "", "none": []})
    assert table.splitlines()[2:] == ["| split.train | 70 |", "| seed | 0 |"]
    assert fact_table({"unknown": None}) == ""


def test_results_become_a_plain_table_and_one_matrix_each():
    text = result_tables(
        {
            "r2": 0.5,
            "loss": {"train": 1.0, "test": 2.0},
            "probe": {"test_accuracy": {"weights": 0.1, "sane": 0.25}, "epoch": {"weights": 0.3}},
            "too_deep": {"a": {"b": {"c": 1.0}}},
            "curves": [[0.1, 0.2]],
        }
    )
    plain, matrix = text.split("\n\n**probe**\n\n")
    assert plain.splitlines()[2:] == ["| r2 | 0.5 |", "| loss: train | 1 |", "| loss: test | 2 |"]
    assert matrix.splitlines() == [
        "|  | test accuracy | epoch |",
        "| --- | ---: | ---: |",
        "| weights | 0.1 | 0.3 |",
        "| sane | 0.25 |  |",
    ]
    assert result_tables({"too_deep": {"a": {"b": {"c": 1.0}}}}) == ""
    assert result_tables({}) == ""


def test_a_mapping_that_shares_no_name_with_the_others_is_a_table_of_its_own():
    text = result_tables(
        {"sampling": {"epoch_0": {"sane": 0.9}, "linear": {"bandwidth": 0.15}, "epoch_1": {"sane": 0.95}}}
    )
    matrix, own = text.split("\n\n**sampling: linear**\n\n")
    assert matrix.splitlines()[2:] == [
        "|  | sane |",
        "| --- | ---: |",
        "| epoch 0 | 0.9 |",
        "| epoch 1 | 0.95 |",
    ]
    assert own.splitlines()[2:] == ["| bandwidth | 0.15 |"]


def test_the_longer_side_of_a_matrix_goes_down():
    matrix = result_tables({"zoos": {"seed": {"runs": 1}, "mixed": {"runs": 2}, "third": {"runs": 3}}})
    assert matrix.splitlines()[2:] == [
        "|  | runs |",
        "| --- | ---: |",
        "| seed | 1 |",
        "| mixed | 2 |",
        "| third | 3 |",
    ]


def test_values_read_as_people_write_them():
    values = [True, False, 9_999, 12_345, 0.123456, 1234.5, ["a", 1], "x"]
    assert [fact_text(value) for value in values] == [
        "yes", "no", "9999", "12,345", "0.1235", "1,234", "a, 1", "x"
    ]  # fmt: skip
