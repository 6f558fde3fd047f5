"""Rejected requests leave no reference cycles, which would retain their connections."""

import gc

import pytest
from aiohttp import ClientSession, web

from tests.support.api import BASE
from tests.support.garbage import no_gc


@pytest.mark.parametrize("path", ["/nowhere", f"{BASE}/chat"])
async def test_unknown_paths_and_methods_leave_no_cycles(api: ClientSession, path: str) -> None:
    gc.collect()
    with no_gc():
        for _ in range(3):
            async with api.get(path) as response:
                assert response.status in {404, 405}
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        gc.set_debug(0)
        found = [type(each).__name__ for each in gc.garbage if isinstance(each, web.Request)]
        gc.garbage.clear()
    assert found == []
