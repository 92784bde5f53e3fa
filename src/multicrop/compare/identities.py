"""What the identities of records say: the facts of one, and the parts in which several differ."""

from collections.abc import Sequence

from multicrop.files import MANIFEST
from multicrop.record import Record, training_words


def differing_parts(records: Sequence[Record]) -> list[str]:
    """The parts of the identity in which some of the records differ; records without an identity are left out."""
    known = [record.identity for record in records if record.identity is not None]
    return sorted({name for other in known[1:] for name in known[0].differences(other)})


def check_protocols(records: Sequence[Record]) -> None:
    """Check that all records were made with the same version of each component that they share.

    Raises:
        ValueError: If two have different versions of one.
    """
    first: dict[str, Record] = {}
    for record in records:
        for name, version in record.protocol.items():
            other = first.setdefault(name, record)
            if other.protocol[name] != version:
                raise ValueError(
                    f"{name} has protocol version {other.protocol[name]} in {other.folder} and {version} in {record.folder}: the same "
                    "configuration gives other numbers. Compare records of one version, or run the older ones again"
                )


def shown_record(record: Record) -> list[str]:
    """The lines that `multicrop record show` prints of one record: accuracy, files, model, data, identity."""
    model, data = record.model, record.data
    sealed = f"as the run wrote them (checked against {MANIFEST})"
    shown = [str(record.folder), f"  accuracy   {100 * record.accuracy:.1f} %", f"  files      {sealed}"]
    if model:
        facts = f"{model.get('architecture')}, {model.get('parameters', 0):,} parameters, {model.get('precision')}"
        shown.append(f"  model      {model.get('name')}: {facts}, weights {model.get('weights')}")
    if data:
        classes, limit = len(data.get("class_names") or []), f", limit={found}" if (found := data.get("limit")) else ""
        images = record.metrics.get("images")
        shown.append(f"  data       {data.get('dataset')} ({data.get('split')}{limit}): {images} images, {classes} classes")
    if words := training_words(data, str(model.get("name", "the model"))):
        shown.append(f"  training   {words}")
    if counts := list((record.metrics.get("support") or {}).get("per_class", {}).values()):
        asked = record.metrics["support"]["asked"]
        spread = f"{min(counts)} to {max(counts)}" if len(set(counts)) > 1 else f"{counts[0]}"
        shown.append(f"  support    {spread} images per class, {f'{asked} asked' if asked else 'from a file'}")
    if record.identity is None:
        return [*shown, "  identity   none was written"]
    return [*shown, f"  identity   {record.identity.key}", *(f"    {name:<11}{part}" for name, part in record.identity.parts.items())]
