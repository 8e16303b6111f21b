"""Bundles out of the ledger into a folder of plain files, and back, every byte checked."""

from pathlib import Path

from domain.bundles import Bundle
from domain.errors import InputError, NotFound, Place
from domain.exports import files_of, read_files
from infra.db.session import transaction
from infra.db.store import bundles, runs

LARGEST = 64 * 1024 * 1024
"""Bytes of one file; a folder from a stranger shall not fill the memory."""


def is_bundle(reference: str) -> bool:
    """Whether this names a bundle and not a run. Raises NotFound when it names neither, or may be either."""
    if "@" in reference:
        return True
    with transaction() as db:
        found = bundles.matching(db, reference)
        try:
            runs.load_run(db, reference)
        except NotFound as error:
            if not found and "no run" in error.message:
                raise NotFound(
                    f"neither a run nor a bundle begins with {reference!r}.",
                    hint="List what exists with `headrace runs` and `headrace bundles`.",
                ) from error
            if not found:
                raise
            run = "more than one" in error.message
        else:
            run = True
    if run and found:
        raise NotFound(f"both runs and bundles begin with {reference!r}.", hint="Give more of the id or of the hash.")
    return bool(found)


def export_bundle(reference: str, folder: Path) -> tuple[Bundle, list[str]]:
    """Write a bundle's files into a folder, which is made; returns the bundle and the files' names.

    Raises NotFound, and InputError for a folder that holds anything else already.
    """
    with transaction() as db:
        bundle = bundles.find_bundle(db, reference).bundle
    files = files_of(bundle)
    if folder.exists() and (not folder.is_dir() or {path.name for path in folder.iterdir()} - files.keys()):
        raise InputError(Place(str(folder)), "something else is there already", hint="Name a folder that is not there.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    return bundle, sorted(files)


def import_bundle(folder: Path) -> tuple[Bundle, bool]:
    """Add a folder's bundle to this ledger; no alias moves. Returns it, and whether it is new here.

    Raises InputError that names the first byte that was changed since the export.
    """
    files: dict[str, bytes] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            if path.stat().st_size > LARGEST:
                raise InputError(Place(str(path)), "the file is too large to be part of a bundle")
            files[path.name] = path.read_bytes()
    bundle = read_files(files, str(folder))
    with transaction() as db:
        new = not bundles.matching(db, bundle.hash)
        bundles.save_bundle(db, bundle, run_id=None)
    return bundle, new
