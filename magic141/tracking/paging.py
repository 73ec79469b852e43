"""Iterates over all pages of MLflow's search results; a single request returns only the first page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import ViewType

PAGE = 1000


def every(search: Callable[..., Any], page_size: int = PAGE) -> Iterator[Any]:
    """All results of a client's `search_…` method; further pages are requested as needed."""
    token = None
    while True:
        page = search(max_results=page_size, page_token=token)
        yield from page
        if not (token := page.token):
            return


def all_experiments(client: MlflowClient, view: int = ViewType.ACTIVE_ONLY) -> list[str]:
    """Ids of all experiments."""
    return [found.experiment_id for found in every(lambda **page: client.search_experiments(view_type=view, **page))]
