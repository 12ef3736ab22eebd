"""S3 endpoint, region and credentials, found in the same way as by other AWS tools."""

from __future__ import annotations

import os
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
        Misconfigured: there are no credentials, or they cannot be loaded.
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
    endpoint = options.endpoint or _variable(_ENDPOINT_VARIABLES) or profile.get("endpoint_url")
    try:
        check_no_secret("endpoint", endpoint or "", instead=KEYS_INSTEAD)
    except ValueError as error:
        raise Misconfigured(str(error)) from error
    return S3Access(
        endpoint=endpoint,
        region=options.region or _variable(_REGION_VARIABLES) or profile.get("region") or "us-east-1",
        anonymous=options.anonymous,
        profile=options.profile,
        request_payer=options.request_payer,
        has_environment_keys=not options.anonymous and keys,
        session=session,
    )


def s3_client(access: S3Access) -> Any:
    """Return botocore's client, for requests that the faster one does not support. Takes 0.1 s; thread-safe."""
    return access.session.create_client(
        "s3",
        region_name=access.region,
        endpoint_url=access.endpoint,
        config=client_config(access),
    )


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
    credentials.get_frozen_credentials()  # report an expired login now, not in the middle of a run


def _variable(names: tuple[str, ...]) -> str | None:
    return next((value for name in names if (value := os.environ.get(name))), None)
