"""Every error that this project raises on purpose.

    PM1Error                   something a person can act on; `exit_code` is what a command returns
    +-- BoundError       (1)   a study ended, with figures below the bounds that it has to keep
    +-- InputError       (2)   a file, a configuration key or an argument is wrong
    |   +-- ConfigError        a configuration key or override
    |   +-- ManifestError      a site manifest, a study definition or a column dictionary
    |   +-- DataError          the content of a data file
    +-- StateError       (3)   something that we wrote ourselves is missing, damaged or half-written
    |   +-- StoreError         a prepared store
    |   +-- CheckpointError    a checkpoint or its lineage
    +-- FederationError  (4)   a phase or round cannot go on (nobody eligible, nobody answered)
    +-- PrivacyError     (5)   a guarantee would be broken: a budget, a claim, a protocol that is not kept to

Each message names what was looked at, what was found, what is accepted and what to do; commands print
it as one sentence, without a traceback.
"""

from __future__ import annotations


class PM1Error(Exception):
    """Root of the tree. Never raised itself."""

    exit_code = 1


class BoundError(PM1Error):
    """A study came to its end, but its figures miss a bound that it has to keep."""


class InputError(PM1Error):
    """Something that a person wrote or chose is wrong."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration key, group or override is unknown or out of bounds."""


class ManifestError(InputError):
    """A site manifest, study definition or column dictionary is wrong."""


class DataError(InputError):
    """The content of a data file is wrong."""


class StateError(PM1Error):
    """Something that this software wrote is missing, damaged or half-written."""

    exit_code = 3


class StoreError(StateError):
    """A prepared store is missing, incomplete or of another study."""


class CheckpointError(StateError):
    """A checkpoint, or a link of its lineage, is missing or damaged."""


class FederationError(PM1Error):
    """A phase or a round cannot go on."""

    exit_code = 4


class PrivacyError(PM1Error):
    """A guarantee would be broken by going on; nothing has left."""

    exit_code = 5
