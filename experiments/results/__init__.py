"""The blocks of figures in README.md and docs/, one module per page: each renders the run records it names as Markdown.

A module has `PAGE`, the page's path from the root of the repository, and `blocks(root)`, which returns what stands
between each `<!-- name:start -->` and `<!-- name:end -->` of that page.
"""
