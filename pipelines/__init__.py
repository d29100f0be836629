"""The evaluation, from prompts to reports. Imports point one way: engine, data <- stages <- report <- paper.

results = pipelines.open_store("out/sweep").results()  # a table: a row a configuration
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.results import open_store as open_store


def __getattr__(name: str) -> Any:
    """`open_store`, imported when it is first used: jobs that never read results do without (PEP 562)."""
    if name == "open_store":
        from pipelines.results import open_store

        return open_store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
