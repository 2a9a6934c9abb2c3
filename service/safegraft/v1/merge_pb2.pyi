import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.rpc import status_pb2 as _status_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MergeState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MERGE_STATE_UNSPECIFIED: _ClassVar[MergeState]
    MERGE_STATE_QUEUED: _ClassVar[MergeState]
    MERGE_STATE_RUNNING: _ClassVar[MergeState]
    MERGE_STATE_SUCCEEDED: _ClassVar[MergeState]
    MERGE_STATE_FAILED: _ClassVar[MergeState]
    MERGE_STATE_CANCELLED: _ClassVar[MergeState]

class Retention(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RETENTION_UNSPECIFIED: _ClassVar[Retention]
    RETENTION_KEEP: _ClassVar[Retention]
    RETENTION_NONE: _ClassVar[Retention]

class PublicationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PUBLICATION_STATE_UNSPECIFIED: _ClassVar[PublicationState]
    PUBLICATION_STATE_RUNNING: _ClassVar[PublicationState]
    PUBLICATION_STATE_SUCCEEDED: _ClassVar[PublicationState]
    PUBLICATION_STATE_FAILED: _ClassVar[PublicationState]
    PUBLICATION_STATE_CANCELLED: _ClassVar[PublicationState]
MERGE_STATE_UNSPECIFIED: MergeState
MERGE_STATE_QUEUED: MergeState
MERGE_STATE_RUNNING: MergeState
MERGE_STATE_SUCCEEDED: MergeState
MERGE_STATE_FAILED: MergeState
MERGE_STATE_CANCELLED: MergeState
RETENTION_UNSPECIFIED: Retention
RETENTION_KEEP: Retention
RETENTION_NONE: Retention
PUBLICATION_STATE_UNSPECIFIED: PublicationState
PUBLICATION_STATE_RUNNING: PublicationState
PUBLICATION_STATE_SUCCEEDED: PublicationState
PUBLICATION_STATE_FAILED: PublicationState
PUBLICATION_STATE_CANCELLED: PublicationState

class Merge(_message.Message):
    __slots__ = ("name", "state", "revision", "create_time", "update_time", "plan_digest", "host_model", "files", "warnings", "progress", "error", "recipe", "max_shard_size", "threads", "retention", "inputs_modify_time", "hub_credential", "publications")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HOST_MODEL_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    MAX_SHARD_SIZE_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_MODIFY_TIME_FIELD_NUMBER: _ClassVar[int]
    HUB_CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    PUBLICATIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: MergeState
    revision: int
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    plan_digest: str
    host_model: str
    files: _containers.RepeatedCompositeFieldContainer[MergeFile]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    progress: MergeProgress
    error: _status_pb2.Status
    recipe: str
    max_shard_size: int
    threads: int
    retention: Retention
    inputs_modify_time: _timestamp_pb2.Timestamp
    hub_credential: str
    publications: _containers.RepeatedCompositeFieldContainer[Publication]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[MergeState, str]] = ..., revision: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., plan_digest: _Optional[str] = ..., host_model: _Optional[str] = ..., files: _Optional[_Iterable[_Union[MergeFile, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., progress: _Optional[_Union[MergeProgress, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., recipe: _Optional[str] = ..., max_shard_size: _Optional[int] = ..., threads: _Optional[int] = ..., retention: _Optional[_Union[Retention, str]] = ..., inputs_modify_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., hub_credential: _Optional[str] = ..., publications: _Optional[_Iterable[_Union[Publication, _Mapping]]] = ...) -> None: ...

class MergeFile(_message.Message):
    __slots__ = ("name", "size", "sha256", "available_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size: int
    sha256: str
    available_bytes: int
    def __init__(self, name: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ..., available_bytes: _Optional[int] = ...) -> None: ...

class MergeProgress(_message.Message):
    __slots__ = ("bytes_done", "bytes_total", "tensors_done", "tensors_total", "current_file")
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    TENSORS_DONE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FILE_FIELD_NUMBER: _ClassVar[int]
    bytes_done: int
    bytes_total: int
    tensors_done: int
    tensors_total: int
    current_file: str
    def __init__(self, bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., tensors_done: _Optional[int] = ..., tensors_total: _Optional[int] = ..., current_file: _Optional[str] = ...) -> None: ...

class Publication(_message.Message):
    __slots__ = ("name", "state", "create_time", "update_time", "repository", "revision", "commit", "url", "pull_request_url", "tags", "private", "evaluated", "credential", "bytes_done", "bytes_total", "current_file", "error", "warnings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    REPOSITORY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    PULL_REQUEST_URL_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    EVALUATED_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FILE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: PublicationState
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    repository: str
    revision: str
    commit: str
    url: str
    pull_request_url: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    private: bool
    evaluated: bool
    credential: str
    bytes_done: int
    bytes_total: int
    current_file: str
    error: _status_pb2.Status
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[PublicationState, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., repository: _Optional[str] = ..., revision: _Optional[str] = ..., commit: _Optional[str] = ..., url: _Optional[str] = ..., pull_request_url: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., private: bool = ..., evaluated: bool = ..., credential: _Optional[str] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., current_file: _Optional[str] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...
