# pyright: basic, reportMissingImports=false
"""Refuse data files that point at other files, as ONNX external data outside its folder is refused.

HDF5 can store a dataset in any file (external storage), link to one, or map parts of others (virtual datasets); a link
in a Zarr store can do the same. A file of a stranger would thereby read any file that its reader may read.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tqs_passes.errors import InputError


def require_own_data(path: Path) -> None:
    """Refuse an HDF5 file or a Zarr store that takes values from elsewhere.

    Raises
    ------
    InputError
        It does; the message names where.
    OSError, RuntimeError, KeyError, ValueError, ImportError
        From h5py: the file is damaged, or h5py is not installed.
    """
    if path.is_dir():
        _require_no_links(path)
        return
    import h5py

    with h5py.File(path, "r") as file:
        seen: set[int] = set()
        groups: list[tuple[str, Any]] = [("", file)]
        while groups:
            prefix, group = groups.pop()
            for name in group:
                place = f"{prefix}/{name}"
                link = group.get(name, getlink=True)
                if isinstance(link, h5py.ExternalLink):
                    raise _refused(path, place, f"links to the file {link.filename!r}")
                if isinstance(link, h5py.SoftLink):
                    continue  # within this file, where its target is visited as well
                item = group[name]
                if isinstance(item, h5py.Dataset):
                    _require_stored_here(path, place, item)
                elif isinstance(item, h5py.Group):
                    address = h5py.h5o.get_info(item.id).addr  # pyright: ignore[reportAttributeAccessIssue]
                    if address not in seen:
                        seen.add(address)
                        groups.append((place, item))


def _require_stored_here(path: Path, place: str, dataset: Any) -> None:  # noqa: ANN401  (h5py is optional)
    if dataset.external:
        raise _refused(path, place, f"is stored in the file {dataset.external[0][0]!r}")
    if dataset.is_virtual:
        raise _refused(path, place, "is put together from other datasets")


def _require_no_links(folder: Path) -> None:
    root = folder.resolve()
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            inside = Path(where) / name
            if inside.is_symlink() and not inside.resolve().is_relative_to(root):
                raise _refused(folder, inside.relative_to(folder).as_posix(), "links to outside of the store")


def _refused(path: Path, place: str, what: str) -> InputError:
    return InputError(
        f"{place!r} {what}: values from other files are not read",
        where=str(path),
        todo="Copy the values into this file, e.g. with xarray's to_netcdf",
    )
