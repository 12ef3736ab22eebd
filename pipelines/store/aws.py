"""S3 endpoint, region and credentials, found in the same way as by other AWS tools."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from typing import Any

import botocore.config
import botocore.exceptions
import botocore.loaders
import botocore.session

from pipelines.store.aws_files import FileCredentials
from pipelines.store.interface import CONNECT_SECONDS, KEYS_INSTEAD, REQUEST_SECONDS, Misconfigured, StoreOptions
from pipelines.store.uris import check_no_secret

# Credentials from botocore are valid for ten more minutes (it refreshes them earlier), so a request every five is safe.
CREDENTIALS_GOOD_FOR = timedelta(minutes=5)

_ENDPOINT_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")
_KEY_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")

# obstore panics at the first request with values that do not fit into an address or a header
_ENDPOINT = re.compile(
    r"https?://(?:\[[0-9a-z:.%]+\]|[\w.~-]+)(?::\d{1,5})?(?:/[^\x00-\x20\x7f?#<>`]*)?", re.ASCII | re.IGNORECASE
)
_LARGEST_PORT = 65_535
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class S3Access:
    """Access to S3. Secrets are only in `session`, which loads them when they are used.

    `has_environment_keys`: the keys are in `AWS_ACCESS_KEY_ID` etc., where every client finds them.
    """

    endpoint: str | None
    region: str
    anonymous: bool
    profile: str | None
    request_payer: bool
    has_environment_keys: bool
    session: botocore.session.Session

    @property
    def plain_http(self) -> bool:
        """Whether the endpoint is unencrypted, which some clients allow only on request."""
        return (self.endpoint or "").startswith("http://")


def s3_access(options: StoreOptions) -> S3Access:
    """Return the access to S3, from the options, then the environment, then the profile.

    No other code below `jobs` reads the environment: `AWS_*` have their usual meaning, and credentials must not be
    passed in options.

    Raises:
        Misconfigured: there are no credentials, or they cannot be loaded, or a setting is invalid.
    """
    session = botocore.session.Session(profile=options.profile)
    session.register_component("data_loader", _data_loader())
    session.register_component("credential_provider", FileCredentials(options.profile))
    keys = options.anonymous or (options.profile is None and bool(os.environ.get("AWS_ACCESS_KEY_ID")))
    profile, failure = _load_profile(session, with_credentials=not keys)
    if failure:
        raise Misconfigured(
            f"the AWS credentials cannot be loaded: {failure}. Log in again, or choose another profile."
        )
    if keys and not options.anonymous:
        _check_environment_keys()
    return S3Access(
        endpoint=_endpoint(options.endpoint, profile),
        region=_region(options.region, profile),
        anonymous=options.anonymous,
        profile=options.profile,
        request_payer=options.request_payer,
        has_environment_keys=not options.anonymous and keys,
        session=session,
    )


def s3_client(access: S3Access) -> Any:
    """Return botocore's client, for requests that the faster one does not support. Takes 0.1 s; thread-safe.

    Raises:
        Misconfigured: botocore does not accept the endpoint or the region.
    """
    try:
        return access.session.create_client(
            "s3",
            region_name=access.region,
            endpoint_url=access.endpoint,
            config=client_config(access),
        )
    except ValueError as error:
        raise Misconfigured(
            f"S3 cannot be used with this endpoint and the region {access.region!r}: {error}. Check both."
        ) from error


def client_config(access: S3Access) -> botocore.config.Config:
    """Return botocore's settings: time-outs, signing, and a single attempt, because our retries are limited by time."""
    return botocore.config.Config(
        signature_version=botocore.UNSIGNED if access.anonymous else None,
        connect_timeout=CONNECT_SECONDS,
        read_timeout=REQUEST_SECONDS,
        retries={"mode": "standard", "total_max_attempts": 1},
        max_pool_connections=64,
        s3={"addressing_style": "path"} if access.endpoint else None,
        # Ceph 16 refuses uploads with trailing checksums
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )


@lru_cache(maxsize=1)
def _data_loader() -> Any:
    """Return the loader of botocore's description of S3, which takes 60 ms for the first client and 5 for the next."""
    return botocore.loaders.create_loader(botocore.session.Session().get_config_variable("data_path"))


def _load_profile(session: botocore.session.Session, *, with_credentials: bool) -> tuple[dict[str, Any], str]:
    """Return the profile's settings, and "" or why they or the credentials are not available.

    The exception is not kept, because it contains the output of the program that provides credentials.
    """
    try:
        profile = session.get_scoped_config()
        if with_credentials:
            _load_credentials(session)
    except botocore.exceptions.CredentialRetrievalError as error:
        return {}, f"{error.kwargs.get('provider', 'their source')} returned none"
    except botocore.exceptions.BotoCoreError as error:
        return {}, str(error)
    except ValueError:
        return {}, "the output of the profile's credential_process is not JSON"
    return profile, ""


def _load_credentials(session: botocore.session.Session) -> None:
    credentials = session.get_credentials()
    if credentials is None:
        raise Misconfigured(
            "no AWS credentials found: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            "or read a public bucket anonymously."
        )
    frozen = credentials.get_frozen_credentials()  # report an expired login now, not in the middle of a run
    if any(_CONTROL.search(value or "") for value in (frozen.access_key, frozen.secret_key, frozen.token)):
        raise Misconfigured(
            f"the AWS credentials of {credentials.method} contain a line end or another control character. "
            "Write them without it."
        )


def _check_environment_keys() -> None:
    """Check the keys in the environment. Messages do not contain them.

    Raises:
        Misconfigured: a key is missing, or contains a line end or another control character.
    """
    if not os.environ.get("AWS_SECRET_ACCESS_KEY"):
        raise Misconfigured(
            "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not. Set both, or neither to use a profile."
        )
    for name in _KEY_VARIABLES:
        if _CONTROL.search(os.environ.get(name, "")):
            raise Misconfigured(f"{name} contains a line end or another control character. Set it without it.")


def _endpoint(option: str | None, profile: Mapping[str, Any]) -> str | None:
    """Return the endpoint, or None for Amazon's.

    Raises:
        Misconfigured: it contains a secret, or is not a web address. The message does not contain it.
    """
    endpoint, name = _setting("endpoint", option, _ENDPOINT_VARIABLES, profile, "endpoint_url")
    if endpoint is None:
        return None
    try:
        check_no_secret("endpoint", endpoint, instead=KEYS_INSTEAD)
    except ValueError as error:
        raise Misconfigured(str(error)) from error
    port = re.search(r":(\d+)(?:/|$)", endpoint)
    if not _ENDPOINT.fullmatch(endpoint) or (port is not None and int(port[1]) > _LARGEST_PORT):
        raise Misconfigured(
            f"{name} is not the address of a server. Write it with http:// or https:// and without spaces and line "
            "ends, such as http://minio:9000."
        )
    return endpoint


def _region(option: str | None, profile: Mapping[str, Any]) -> str:
    """Return the region.

    Raises:
        Misconfigured: it contains a line end or another control character.
    """
    region, name = _setting("region", option, _REGION_VARIABLES, profile, "region")
    if region is not None and _CONTROL.search(region):
        raise Misconfigured(f"{name} contains a line end or another control character: {region!r}. Set it without it.")
    return region or "us-east-1"


def _setting(
    option: str, value: str | None, variables: tuple[str, ...], profile: Mapping[str, Any], field: str
) -> tuple[str | None, str]:
    """Return a setting from the option, else the environment, else the profile, and where it is set, for messages."""
    if value:
        return value, f"--{option}"
    variable = next((name for name in variables if os.environ.get(name)), None)
    if variable is not None:
        return os.environ[variable], variable
    return profile.get(field) or None, f"{field} of the AWS profile"
