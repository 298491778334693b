"""What Frugal says when it cannot go on: each message is one line that names the key or file and the way out."""


class FrugalError(Exception):
    """Base of every error that is the input's fault. Printed as one line, without a traceback."""


class SettingsError(FrugalError):
    """A key, value, option or combination in the configuration that cannot be used."""


class RefusedError(SettingsError):
    """A combination without meaning. In a sweep it is recorded as `refused` and fails nothing."""


class DataError(FrugalError):
    """A data file that is missing, cannot be fetched, or is not what its checksum says."""


class RunError(FrugalError):
    """A run's folder, checkpoint or artefact that cannot be opened, written or continued."""
