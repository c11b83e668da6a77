"""Errors of an object store, each as one sentence with its remedy. Only this file knows S3's error codes."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

from serving.errors import StorageError, StoreUnavailable

NO_FILE = ("404", "NoSuchKey", "NotFound")
CHANGED = ("412", "PreconditionFailed", "416", "InvalidRange")
WRONG_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken")
WRONG_REGION = ("301", "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException")
REFUSED = ("403", "AccessDenied", "Forbidden", "AllAccessDisabled")
PASSING = ("429", "SlowDown", "TooManyRequests", "Throttling", "RequestTimeout", "RequestLimitExceeded")

# Stores refuse signatures made by a wrong clock. HEAD gives no body, so only the answer's Date tells that from another 403.
CLOCK_TOLERANCE_S = 900


@dataclass(frozen=True)
class Refusal:
    """An unsuccessful answer to `operation` (such as HeadObject) on a URL. `signed` is false without credentials."""

    url: str
    operation: str
    code: str
    status: int
    message: str
    headers: Mapping[str, str]
    region: str
    signed: bool

    @classmethod
    def of(cls, url: str, operation: str, response: Mapping[str, Any], signed: bool) -> Self:
        """The refusal in a response as boto3 parses it."""
        error, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
        headers = meta.get("HTTPHeaders", {})
        region = error.get("Region") or headers.get("x-amz-bucket-region", "")
        code, message = str(error.get("Code", "")), str(error.get("Message", ""))
        return cls(url, operation, code, meta.get("HTTPStatusCode", 0), message, headers, region, signed)

    @property
    def no_file(self) -> bool:
        return self.code in NO_FILE

    def error(self, now: datetime | None = None) -> StorageError:
        """The error to raise; StoreUnavailable if the same request may succeed later."""
        bucket = self.url.removeprefix("s3://").partition("/")[0]
        if self.code == "NoSuchBucket" or (self.no_file and self.operation == "HeadBucket"):
            return StorageError(f"there is no bucket {bucket}: check the name in {self.url} and AWS_ENDPOINT_URL")
        if self.no_file:
            return StorageError(f"there is no {self.url}: check bucket, key and AWS_ENDPOINT_URL")
        if self.code in CHANGED:
            return StorageError(f"{self.url} is not the object that was listed, it changed meanwhile: run this again")
        if self.code in WRONG_CREDENTIALS:
            remedy = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            return StorageError(f"the credentials for {self.url} are wrong ({self.code}): {remedy}")
        if self.code in WRONG_REGION:
            remedy = f"set AWS_DEFAULT_REGION to {self.region or 'the region of the bucket'}"
            return StorageError(f"bucket {bucket} of {self.url} is in another region than was asked: {remedy}")
        if self.code == "RequestTimeTooSkewed" or (self.status == 403 and self.clock_error_s(now) > CLOCK_TOLERANCE_S):
            return StorageError(
                f"the clock of this machine is {self.clock_error_s(now) / 60:.0f} minutes away from that of the store of "
                f"{self.url}, which therefore refuses: set the clock"
            )
        if not self.signed and self.status in (400, 401, 403):
            remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            return StorageError(f"there are no credentials for {self.url}, and it is not public: {remedy}")
        if self.code in REFUSED:
            remedy = f"check the credentials and what they may do with bucket {bucket}"
            return StorageError(f"access to {self.url} is refused ({self.code}): {remedy}")
        if self.code in PASSING or self.status >= 500:
            remedy = "try again later, or check AWS_ENDPOINT_URL"
            return StoreUnavailable(f"the store of {self.url} is overloaded or broken ({self.code}): {remedy}")
        return StorageError(f"{self.url} is refused ({self.code}: {self.message}): check it and the AWS_ settings")

    def clock_error_s(self, now: datetime | None) -> float:
        """Seconds between the clocks of this machine and the store, 0 if the answer has no date."""
        if "date" not in self.headers:
            return 0.0
        try:
            there = parsedate_to_datetime(self.headers["date"])
        except ValueError:
            return 0.0
        return abs(((now or datetime.now(UTC)) - there).total_seconds())
