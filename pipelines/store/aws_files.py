"""AWS credentials in files that are renewed during a run: read again every few minutes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import botocore.session
from botocore.credentials import RefreshableCredentials
from botocore.exceptions import NoCredentialsError

READ_AGAIN_AFTER: Final = timedelta(minutes=5)

_IN_FILES: Final = ("shared-credentials-file", "config-file")  # botocore's names of what it would read only once
# botocore refreshes credentials this long before they expire, and keeps the old ones while there are no new ones
_ASKED_BEFORE: Final = timedelta(minutes=15)


class FileCredentials:
    """What a botocore session finds credentials with: as ever, but those of files are not kept for good.

    Temporary keys that a login tool writes into `~/.aws/credentials` end after an hour or so; a run lasts for days.
    """

    def __init__(self, profile: str | None) -> None:
        """Take the profile, None for the one that the environment says."""
        self._profile = profile

    def load_credentials(self) -> Any:
        """Return botocore's credentials, or None."""
        found = self._find()
        if found is None or found.method not in _IN_FILES:
            return found  # roles, SSO and processes say when theirs end
        return RefreshableCredentials.create_from_metadata(
            _until_read_again(found), refresh_using=lambda: _until_read_again(self._find()), method=found.method
        )

    def _find(self) -> Any:
        return botocore.session.Session(profile=self._profile).get_credentials()


def _until_read_again(found: Any) -> dict[str, str | None]:
    """Return credentials as botocore wants those that end."""
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
