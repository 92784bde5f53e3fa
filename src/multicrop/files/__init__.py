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
from multicrop.files.remote_file import File, RemoteFile, file_at, files_at
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
    "File",
    "Identity",
    "ObjectStoreError",
    "Objects",
    "PersistentError",
    "RemoteFile",
    "StoredObject",
    "as_yaml",
    "atomic",
    "content_hash",
    "damaged_files",
    "facts_in",
    "file_at",
    "file_hash",
    "files_at",
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
