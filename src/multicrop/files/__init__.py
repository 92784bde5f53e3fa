"""Files and their identities: the bottom room, which everything that writes or keys a result uses."""

from multicrop.files.access import (
    PersistentError,
    as_yaml,
    atomic,
    is_passing,
    make_folder,
    naming,
    retrying,
    save_figure,
    write_text,
)
from multicrop.files.identity import Identity, content_hash, file_hash
from multicrop.files.objects import Objects, ObjectStoreError, StoredObject, is_url
from multicrop.files.seals import (
    MANIFEST,
    DamagedFileError,
    damaged_files,
    facts_in,
    read_facts,
    read_sealed,
    set_aside,
    write_facts,
    write_manifest,
    write_sealed,
)
from multicrop.files.secrets import SECRET, SHORTEST, redacted, secret_variables

__all__ = [
    "MANIFEST",
    "SECRET",
    "SHORTEST",
    "DamagedFileError",
    "Identity",
    "ObjectStoreError",
    "Objects",
    "PersistentError",
    "StoredObject",
    "as_yaml",
    "atomic",
    "content_hash",
    "damaged_files",
    "facts_in",
    "file_hash",
    "is_passing",
    "is_url",
    "make_folder",
    "naming",
    "read_facts",
    "read_sealed",
    "redacted",
    "retrying",
    "save_figure",
    "secret_variables",
    "set_aside",
    "write_facts",
    "write_manifest",
    "write_sealed",
    "write_text",
]
