"""The generated blocks of README.md and docs/: one module per page renders run records as Markdown.

A module has `PAGE`, the page's path from the root of the repository, and `blocks(root)`, which returns the text
between each `<!-- name:start -->` and `<!-- name:end -->` of that page.
"""
