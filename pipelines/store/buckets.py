"""Opens buckets of S3, Google Cloud Storage and Azure."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import obstore.store
from obstore.exceptions import BaseError

from pipelines.store.aws import CREDENTIALS_GOOD_FOR, S3Access, s3_access
from pipelines.store.boto_s3 import BotoS3
from pipelines.store.interface import CONNECT_SECONDS, REQUEST_SECONDS, Misconfigured, Store, StoreOptions
from pipelines.store.obstore_store import ObstoreStore
from pipelines.store.uris import without_secrets

# Also of servers with looser rules than Amazon's, such as Ceph with its tenants; clients panic with blanks and others
_BUCKET = re.compile(r"arn:[!-;=?-_a-z|~]+|[a-zA-Z0-9._:$-]{1,255}")
_BAD_ADDRESS = ("recognise URL", "known pattern", "domain", "host")
_QUOTED = re.compile(r"\"[^\"]*\"|`[^`]*`|'[^']*'")


def open_s3(root: str, options: StoreOptions) -> Callable[[str], Store]:
    """Return a function that opens the store of a folder of an S3 bucket."""
    name = check_bucket(root)
    access = s3_access(options)
    slow = BotoS3(name, access, options.retry_seconds)
    if options.via == "fsspec":
        from pipelines.store.fsspec_store import FsspecS3

        return partial(FsspecS3, slow, name, root, access=access, retry_seconds=options.retry_seconds)
    opened = partial(_native_s3, name, access, options)
    return partial(
        ObstoreStore,
        _open(root, opened, "Missing ", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or neither."),
        root,
        slow=slow,
        retry_seconds=options.retry_seconds,
        reads_once=options.reads_once,
        patient=opened,
    )


def check_bucket(root: str) -> str:
    """Return the name of the bucket in the root of an S3 store.

    Raises:
        Misconfigured: it is missing, or cannot be the name of a bucket.
    """
    name = root.partition("://")[2]
    if not name:
        raise Misconfigured(f"{root}: the name of a bucket is missing; write it as in s3://bucket/folder/")
    if not _BUCKET.fullmatch(name):
        raise Misconfigured(
            f"{without_secrets(root)!r} is not a bucket: names of buckets have letters, digits, dots, hyphens and "
            "underscores only."
        )
    return name


def check_container(root: str) -> None:
    """Check the address of a Google bucket or an Azure container, without its credentials.

    Raises:
        Misconfigured: obstore does not accept the address.
    """
    try:
        _native_cloud(root, StoreOptions(anonymous=True), REQUEST_SECONDS)
    except (BaseError, ValueError) as error:
        reason = _reason(error)
    else:
        return
    if any(words in reason for words in _BAD_ADDRESS):  # not if credentials are missing, which other machines may have
        raise Misconfigured(f"{without_secrets(root)} cannot be opened: {reason}.")


def open_cloud(root: str, options: StoreOptions) -> Callable[[str], Store]:
    """Return a function that opens the store of a folder of a Google bucket or an Azure container."""
    opened = partial(_native_cloud, root, options)
    return partial(
        ObstoreStore,
        _open(root, opened, "Account must be specified", "Set AZURE_STORAGE_ACCOUNT_NAME."),
        root,
        slow=None,
        retry_seconds=options.retry_seconds,
        reads_once=options.reads_once,
        patient=opened,
    )


def _open(
    root: str, opened: Callable[[int], obstore.store.ObjectStore], cause: str, hint: str
) -> obstore.store.ObjectStore:
    """Return obstore's store of a bucket. A failure whose reason contains `cause` is reported with `hint`.

    Raises:
        Misconfigured: obstore does not accept the settings.
    """
    try:
        return opened(REQUEST_SECONDS)
    except (BaseError, ValueError) as error:
        reason = _reason(error)
    advice = f" {hint}" if cause in reason else ""
    raise Misconfigured(f"{without_secrets(root)} cannot be opened: {reason}.{advice}")


def _native_cloud(root: str, options: StoreOptions, seconds: int) -> obstore.store.ObjectStore:
    config: Any = {"skip_signature": True} if options.anonymous else {}
    return obstore.store.from_url(
        root.replace("gcs://", "gs://"),
        config=config,
        client_options=_client_options(seconds, allow_http=False),
        retry_config=_retry_config(options.retry_seconds),
    )


def _native_s3(name: str, access: S3Access, options: StoreOptions, seconds: int) -> obstore.store.S3Store:
    # one DELETE for one object: bulk deletion is a POST that not every store and policy supports
    config: dict[str, Any] = {
        "region": access.region,
        "skip_signature": access.anonymous,
        "request_payer": access.request_payer,
        "disable_bulk_delete": True,
    }
    if access.endpoint:
        config["endpoint"] = access.endpoint
    if not access.anonymous and not access.has_environment_keys:
        from obstore.auth.boto3 import Boto3CredentialProvider  # imports boto3: 0.15 s

        # obstore does not support profiles and SSO; botocore supports these and the metadata services
        config["credential_provider"] = Boto3CredentialProvider(access.session, ttl=CREDENTIALS_GOOD_FOR)
    return obstore.store.S3Store(
        name,
        client_options=_client_options(seconds, allow_http=access.plain_http),
        retry_config=_retry_config(options.retry_seconds),
        **config,
    )


def _reason(error: Exception) -> str:
    # quoted text may be a part of an invalid key
    return _QUOTED.sub("...", str(error).splitlines()[0].rpartition("error: ")[2].rstrip("."))


def _client_options(seconds: int, *, allow_http: bool) -> Any:
    return {
        "timeout": timedelta(seconds=seconds),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "allow_http": allow_http,
    }


def _retry_config(seconds: float) -> Any:
    # obstore's defaults (10 attempts from 0.1 s) gave up after 2 s of refused connections; these last more than 30 s
    return {
        "max_retries": 40 if seconds else 0,
        "retry_timeout": timedelta(seconds=seconds),
        "backoff": {"init_backoff": timedelta(milliseconds=250), "max_backoff": timedelta(seconds=10), "base": 2},
    }
