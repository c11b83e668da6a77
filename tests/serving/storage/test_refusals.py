"""Each way an object store refuses, in the words it uses."""

from typing import Any

import pytest

from serving.errors import StorageError, StoreUnavailable
from serving.storage.refusals import Refusal


def error(
    code: str, status: int = 400, operation: str = "GetObject", signed: bool = True, **facts: Any
) -> StorageError:
    headers = {"date": "Mon, 23 Nov 2026 12:00:00 GMT"} if status != 403 else {}
    response = {
        "Error": {"Code": code, "Message": "no", **facts},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    return Refusal.of("s3://bucket/key", operation, response, signed).error()


@pytest.mark.parametrize(
    ("refusal", "sentence"),
    [
        (error("NoSuchBucket", 404), "there is no bucket bucket: check the name in s3://bucket/key"),
        (error("404", 404, "HeadBucket"), "there is no bucket bucket: check the name in s3://bucket/key"),
        (error("NoSuchKey", 404), "there is no s3://bucket/key: check bucket, key and AWS_ENDPOINT_URL"),
        (error("PreconditionFailed", 412), "s3://bucket/key is not the object that was listed"),
        (error("InvalidRange", 416), "s3://bucket/key is not the object that was listed"),
        (
            error("InvalidAccessKeyId", 403),
            r"the credentials .* are wrong \(InvalidAccessKeyId\): check AWS_ACCESS_KEY",
        ),
        (error("SignatureDoesNotMatch", 403), "the credentials .* are wrong"),
        (error("ExpiredToken", 400), "the credentials .* are wrong"),
        (
            error("AuthorizationHeaderMalformed", 400, Region="eu-west-1"),
            "another region than was asked: set AWS_DEFAULT_REGION to eu-west-1",
        ),
        (error("PermanentRedirect", 301), "another region than was asked: set AWS_DEFAULT_REGION to the region of"),
        (error("RequestTimeTooSkewed", 403), "the clock of this machine is .* away .*: set the clock"),
        (error("AccessDenied", 403), r"access to s3://bucket/key is refused \(AccessDenied\): check the credentials"),
        (error("AccessDenied", 403, signed=False), "there are no credentials for .*, and it is not public: set AWS_"),
        (error("InvalidObjectState", 403), r"s3://bucket/key is refused \(InvalidObjectState: no\): check it"),
    ],
)
def test_a_refusal_is_a_sentence_with_a_remedy(refusal: StorageError, sentence: str) -> None:
    assert not isinstance(refusal, StoreUnavailable)
    with pytest.raises(StorageError, match=sentence):
        raise refusal


@pytest.mark.parametrize(("code", "status"), [("SlowDown", 503), ("InternalError", 500), ("TooManyRequests", 429)])
def test_what_passes_is_told_apart(code: str, status: int) -> None:
    assert isinstance(error(code, status), StoreUnavailable)
