"""A blocking memory is a mapping: CPython's own tests of mappings, and zict's."""

from __future__ import annotations

import pytest

import reclaimactors as ra

mapping_tests = pytest.importorskip("test.mapping_tests", reason="CPython's tests are not there")

SMALL = {"budget": "1MiB", "swap": [], "compress": {"offload": "inline"}}


class TestMappingOfCPython(mapping_tests.BasicTestMappingProtocol):
    """All of its tests apply; the reference has values that are bytes."""

    def _reference(self):
        return {"1": b"2", "key1": b"value1", "key2": bytes(range(256)) * 20}

    def _empty_mapping(self):
        store = ra.open_blocking(**SMALL)
        self.addCleanup(store.close)
        return store


@pytest.mark.parametrize(
    "check",
    [
        "check_mapping",
        "check_different_keys_threadsafe",
        "check_same_key_threadsafe",
        "check_bad_value_types",
    ],
)
def test_mapping_of_zict(check):
    """`check_bad_key_types` does not apply: any hashable is a key here."""
    zict = pytest.importorskip("zict.tests.utils_test")
    with ra.open_blocking(**SMALL) as store:
        getattr(zict, check)(store)
