"""Read AWS credentials from files again every few minutes, because they may be renewed during a run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import botocore.session
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import NoCredentialsError

READ_AGAIN_AFTER: Final = timedelta(minutes=5)

_IN_FILES: Final = ("shared-credentials-file", "config-file")  # providers that botocore would read only once
# botocore refreshes credentials this long before they expire, and keeps the old ones while there are no new ones
_ASKED_BEFORE: Final = timedelta(minutes=15)


class FileCredentials:
    """The credential resolver of a botocore session, which does not cache credentials of files permanently.

    Temporary keys that a login tool writes to `~/.aws/credentials` expire after about an hour; a run may take days.
    """

    def __init__(self, profile: str | None) -> None:
        """Use a profile; None is that of the environment."""
        self._profile = profile

    def load_credentials(self) -> Any:
        """Return botocore's credentials, or None."""
        found = self._find()
        if found is None or found.method not in _IN_FILES:
            return found  # credentials of roles, SSO and processes have an expiry time
        return RefreshableCredentials.create_from_metadata(
            _until_read_again(found), refresh_using=lambda: _until_read_again(self._find()), method=found.method
        )

    def _find(self) -> Any:
        return botocore.session.Session(profile=self._profile).get_credentials()


def _until_read_again(found: Any) -> dict[str, str | None]:
    """Return credentials in botocore's format for expiring ones."""
    if found is None:
        raise NoCredentialsError
    keys = found.get_frozen_credentials()
    ends = datetime.now(UTC) + _ASKED_BEFORE + READ_AGAIN_AFTER
    return {
        "access_key": keys.access_key,
        "secret_key": keys.secret_key,
        "token": keys.token,
        "expiry_time": ends.isoformat(),
    }
