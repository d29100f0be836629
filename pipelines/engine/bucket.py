"""Writes of which the first stays, in a bucket: S3's `If-None-Match: *`, GCS's generation 0. pyarrow has no such write.

Credentials come from where pyarrow's come from: environment, profile or role (boto3's chain, which is that of AWS' own
libraries), and Google's application default credentials.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import obstore
from obstore import exceptions
from obstore.auth.boto3 import Boto3CredentialProvider
from obstore.store import GCSStore, ObjectStore, S3Store
from pyarrow import fs

from pipelines.engine.urls import clean

LONGEST = timedelta(minutes=10)  # of one write: a GB at 2 MB a second
KEPT = timedelta(minutes=10)  # credentials: boto3 renews them before less is left of them
REFUSED = (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)


def conditional(filesystem: fs.FileSystem, name: str) -> ObjectStore:
    """The bucket `name` of S3 or GCS as pyarrow opened it, for `create`. Raises PermissionError without credentials."""
    _, (opened,) = filesystem.__reduce__()  # what it was opened with, from the URL and the environment
    scheme, _, host = (opened["endpoint_override"] or "").rpartition("://")
    endpoint = f"{scheme or opened['scheme']}://{host}" if host else None
    options: dict[str, Any] = {"allow_http": True, "timeout": LONGEST}  # http is used where the endpoint says so
    settings: dict[str, Any] = {"client_options": options, "retry_config": {"max_retries": 0}}  # `retry` has its own
    if filesystem.type_name == "gcs":
        return GCSStore(name, **settings | ({"base_url": endpoint} if endpoint else {}))
    if opened["tls_ca_file_path"]:
        options["root_certificate"] = Path(opened["tls_ca_file_path"]).read_bytes()
    session = boto3.Session()
    if session.get_credentials() is None:
        raise PermissionError("no AWS credentials: expected environment variables, a profile, or the machine's role")
    hosted = opened["force_virtual_addressing"]
    if endpoint:
        settings["aws_endpoint_url_s3"] = endpoint.replace("://", f"://{name}.") if hosted else endpoint
    return S3Store(
        name,
        region=filesystem.region,
        virtual_hosted_style_request=hosted,
        credential_provider=Boto3CredentialProvider(session, ttl=KEPT),
        **settings,
    )


def create(bucket: ObjectStore, key: str, data: bytes) -> bool:
    """Write the object `key` in one request that the bucket refuses where an object is; returns whether it wrote it.

    Raises: OSError; PermissionError if the bucket may not be written to.
    """
    try:
        obstore.put(bucket, key, data, mode="create", use_multipart=False)
    except exceptions.AlreadyExistsError:
        return False
    except REFUSED as error:
        raise PermissionError(_in_words(error)) from None
    except exceptions.BaseError as error:
        raise OSError(_in_words(error)) from None
    return True


def _in_words(error: Exception) -> str:
    """What it says, without the dump of its inside."""
    return clean(str(error).partition("\n\nDebug source")[0])
