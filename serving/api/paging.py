"""Pages of lists: `page` from 1, `limit` from 1 to 100."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Query

from neuroweaver.contracts import PaginationMeta

T = TypeVar("T")


@dataclass(frozen=True)
class Paging:
    page: int
    limit: int

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.limit

    def of(self, items: Sequence[T]) -> Sequence[T]:
        return items[self.offset : self.offset + self.limit]

    def meta(self, total: int) -> PaginationMeta:
        return PaginationMeta(page=self.page, limit=self.limit, total=total, total_pages=-(-total // self.limit))


def _paging(
    page: Annotated[int, Query(ge=1, le=1_000_000, description="from 1")] = 1,
    limit: Annotated[int, Query(ge=1, le=100, description="items on a page")] = 20,
) -> Paging:
    return Paging(page, limit)


Paged = Annotated[Paging, Depends(_paging)]
