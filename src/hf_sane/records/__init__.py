"""Output on disk: files and folders that are complete or absent, run records, and errors of reading."""

from typing import TYPE_CHECKING

from hf_sane._lazy import lazy_names

if TYPE_CHECKING:
    from hf_sane.records._allocator import tune_allocator
    from hf_sane.records._errors import InvalidFileError
    from hf_sane.records._failures import run_script
    from hf_sane.records._run_record import RunRecord
    from hf_sane.records._settings import as_arguments, setting
    from hf_sane.records._uploads import RepoFile, Upload

__all__ = [
    "InvalidFileError",
    "RepoFile",
    "RunRecord",
    "Upload",
    "as_arguments",
    "run_script",
    "setting",
    "tune_allocator",
]
_HOMES = {
    "tune_allocator": "_allocator",
    "InvalidFileError": "_errors",
    "run_script": "_failures",
    "RunRecord": "_run_record",
    "as_arguments": "_settings",
    "setting": "_settings",
    "RepoFile": "_uploads",
    "Upload": "_uploads",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
