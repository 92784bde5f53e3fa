"""A fault storm: kills, damaged files, changed inputs, full disks and several writers, each followed by a check of the result."""
