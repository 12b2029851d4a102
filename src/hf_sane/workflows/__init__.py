"""Complete workflows, from settings to a result; called by the Python API, the command line and the scripts.

Each module is one workflow: a `Settings` dataclass whose fields are also the command's options, a function that takes
these settings, and the `Result` that it returns, which can be printed and saved.
"""
