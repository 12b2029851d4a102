"""For any bytes, a reader returns valid contents or raises `InvalidFileError`; nothing large is allocated."""

import pytest
from fuzz_mutations import mutations
from fuzz_readers import READERS, Trial
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

EXAMPLES = 40
SLOW_EXAMPLES = 10
ALL = settings(derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    return {name: Trial(name, tmp_path_factory.mktemp("fuzz")) for name in READERS}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_accepts_its_own_files(name, trials):
    for seed in trials[name].reader.seeds:
        assert trials[name].run(seed)


@pytest.mark.parametrize("name", READERS)
def test_a_reader_takes_any_bytes(name, trials):
    trial = trials[name]
    seeds, examples = trial.reader.seeds, SLOW_EXAMPLES if trial.reader.is_slow else EXAMPLES

    @settings(ALL, max_examples=examples)
    @given(st.one_of(st.binary(max_size=64), *(mutations(seed, trial.reader.file) for seed in seeds)))
    def run(content):
        trial.run(content)

    run()
    assert trial.refused
    assert trial.accepted + trial.refused >= examples // 2
