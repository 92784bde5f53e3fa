"""Clusters of images by their ids: a regular expression finds the patient, video or session in a path."""

import re
from collections.abc import Sequence


def matched_clusters(ids: Sequence[str], pattern: str | None, name: str) -> list[str] | None:
    """The cluster of each image: the first group of the pattern, or all that matches; ``""`` for an image without a match.

    Raises ValueError if the pattern is no regular expression or matches no image.
    """
    if not pattern or not ids:
        return None
    try:
        found = [re.search(pattern, image_id) for image_id in ids]
    except re.error as error:
        raise ValueError(f"dataset.cluster_pattern={pattern!r} is no regular expression: {error}") from error
    if not any(found):
        raise ValueError(
            f"dataset.cluster_pattern={pattern!r} matches none of the {len(found)} images of {name}, such as {ids[0]}; write a pattern for "
            "image ids (paths), its first group being the cluster, or leave it out"
        )
    return [(match[1 if match.re.groups else 0] or "") if match else "" for match in found]
