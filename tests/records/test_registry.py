"""Methods by name, and plug-ins that add to them from outside of the package."""

import sys

import pytest

from hf_sane.records._registry import Registry, load_plugins


def test_entries_keep_their_order_and_unknown_names_are_refused():
    registry: Registry[int] = Registry("number")
    registry.add("two", 2)
    registry.add("one", 1)
    assert list(registry) == ["two", "one"]
    assert registry.find("one") == 1
    assert "one" in registry
    assert "three" not in registry
    with pytest.raises(ValueError, match=r"^expected a number, one of two, one, got 'onee'; did you mean 'one'\?$"):
        registry.find("onee")
    with pytest.raises(ValueError, match="there is a number 'one' already; choose another name"):
        registry.add("one", 3)
    assert registry.find("one") == 1


def test_installed_plugins_are_imported(tmp_path, monkeypatch):
    (tmp_path / "plugin_of_a_test.py").write_text("LOADED = True\n")
    about = tmp_path / "plugin_of_a_test-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin-of-a-test\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[hf_sane.plugins]\nmine = plugin_of_a_test\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "plugin_of_a_test" not in sys.modules
    load_plugins()
    assert sys.modules.pop("plugin_of_a_test").LOADED
