import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from safegraft.v1 import merge_pb2 as _merge_pb2
from safegraft.v1 import plan_pb2 as _plan_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("version", "start_time", "model_roots", "workers", "max_chunk_bytes", "max_recipe_bytes", "max_upload_bytes", "used_upload_bytes", "upload_lifetime", "free_disk_bytes", "hub_models", "url_prefixes", "hub_credentials", "publish_to")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_ROOTS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    MAX_CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RECIPE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_UPLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    USED_UPLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_LIFETIME_FIELD_NUMBER: _ClassVar[int]
    FREE_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    HUB_MODELS_FIELD_NUMBER: _ClassVar[int]
    URL_PREFIXES_FIELD_NUMBER: _ClassVar[int]
    HUB_CREDENTIALS_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_TO_FIELD_NUMBER: _ClassVar[int]
    version: str
    start_time: _timestamp_pb2.Timestamp
    model_roots: _containers.RepeatedScalarFieldContainer[str]
    workers: int
    max_chunk_bytes: int
    max_recipe_bytes: int
    max_upload_bytes: int
    used_upload_bytes: int
    upload_lifetime: _duration_pb2.Duration
    free_disk_bytes: int
    hub_models: _containers.RepeatedScalarFieldContainer[str]
    url_prefixes: _containers.RepeatedScalarFieldContainer[str]
    hub_credentials: _containers.RepeatedScalarFieldContainer[str]
    publish_to: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model_roots: _Optional[_Iterable[str]] = ..., workers: _Optional[int] = ..., max_chunk_bytes: _Optional[int] = ..., max_recipe_bytes: _Optional[int] = ..., max_upload_bytes: _Optional[int] = ..., used_upload_bytes: _Optional[int] = ..., upload_lifetime: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., free_disk_bytes: _Optional[int] = ..., hub_models: _Optional[_Iterable[str]] = ..., url_prefixes: _Optional[_Iterable[str]] = ..., hub_credentials: _Optional[_Iterable[str]] = ..., publish_to: _Optional[_Iterable[str]] = ...) -> None: ...

class ListMethodsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMethodsResponse(_message.Message):
    __slots__ = ("methods", "plugins", "modifiers")
    METHODS_FIELD_NUMBER: _ClassVar[int]
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    MODIFIERS_FIELD_NUMBER: _ClassVar[int]
    methods: _containers.RepeatedCompositeFieldContainer[MergeMethod]
    plugins: _containers.RepeatedCompositeFieldContainer[Plugin]
    modifiers: _containers.RepeatedCompositeFieldContainer[Modifier]
    def __init__(self, methods: _Optional[_Iterable[_Union[MergeMethod, _Mapping]]] = ..., plugins: _Optional[_Iterable[_Union[Plugin, _Mapping]]] = ..., modifiers: _Optional[_Iterable[_Union[Modifier, _Mapping]]] = ...) -> None: ...

class GetMethodRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class MergeMethod(_message.Message):
    __slots__ = ("name", "summary", "reference", "granularity", "base", "min_inputs", "max_inputs", "parameters_schema", "input_parameters_schema", "plugin", "roles", "calibration")
    class Base(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        BASE_UNSPECIFIED: _ClassVar[MergeMethod.Base]
        BASE_REQUIRED: _ClassVar[MergeMethod.Base]
        BASE_OPTIONAL: _ClassVar[MergeMethod.Base]
        BASE_IGNORED: _ClassVar[MergeMethod.Base]
        BASE_FORBIDDEN: _ClassVar[MergeMethod.Base]
    BASE_UNSPECIFIED: MergeMethod.Base
    BASE_REQUIRED: MergeMethod.Base
    BASE_OPTIONAL: MergeMethod.Base
    BASE_IGNORED: MergeMethod.Base
    BASE_FORBIDDEN: MergeMethod.Base
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    GRANULARITY_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    MIN_INPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_INPUTS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    INPUT_PARAMETERS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    reference: str
    granularity: str
    base: MergeMethod.Base
    min_inputs: int
    max_inputs: int
    parameters_schema: str
    input_parameters_schema: str
    plugin: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    calibration: _containers.RepeatedCompositeFieldContainer[Calibration]
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., reference: _Optional[str] = ..., granularity: _Optional[str] = ..., base: _Optional[_Union[MergeMethod.Base, str]] = ..., min_inputs: _Optional[int] = ..., max_inputs: _Optional[int] = ..., parameters_schema: _Optional[str] = ..., input_parameters_schema: _Optional[str] = ..., plugin: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., calibration: _Optional[_Iterable[_Union[Calibration, _Mapping]]] = ...) -> None: ...

class Calibration(_message.Message):
    __slots__ = ("name", "statistic", "model", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATISTIC_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    statistic: str
    model: str
    data: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., statistic: _Optional[str] = ..., model: _Optional[str] = ..., data: _Optional[_Iterable[str]] = ...) -> None: ...

class Modifier(_message.Message):
    __slots__ = ("name", "summary", "reference", "parameters_schema", "plugin")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    PLUGIN_FIELD_NUMBER: _ClassVar[int]
    name: str
    summary: str
    reference: str
    parameters_schema: str
    plugin: str
    def __init__(self, name: _Optional[str] = ..., summary: _Optional[str] = ..., reference: _Optional[str] = ..., parameters_schema: _Optional[str] = ..., plugin: _Optional[str] = ...) -> None: ...

class Plugin(_message.Message):
    __slots__ = ("name", "module", "distribution", "version", "methods", "error", "modifiers", "tensor_maps", "checkpoint_sources", "publishers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODULE_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    METHODS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MODIFIERS_FIELD_NUMBER: _ClassVar[int]
    TENSOR_MAPS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_SOURCES_FIELD_NUMBER: _ClassVar[int]
    PUBLISHERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    module: str
    distribution: str
    version: str
    methods: _containers.RepeatedScalarFieldContainer[str]
    error: str
    modifiers: _containers.RepeatedScalarFieldContainer[str]
    tensor_maps: _containers.RepeatedScalarFieldContainer[str]
    checkpoint_sources: _containers.RepeatedScalarFieldContainer[str]
    publishers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., module: _Optional[str] = ..., distribution: _Optional[str] = ..., version: _Optional[str] = ..., methods: _Optional[_Iterable[str]] = ..., error: _Optional[str] = ..., modifiers: _Optional[_Iterable[str]] = ..., tensor_maps: _Optional[_Iterable[str]] = ..., checkpoint_sources: _Optional[_Iterable[str]] = ..., publishers: _Optional[_Iterable[str]] = ...) -> None: ...

class PlanMergeRequest(_message.Message):
    __slots__ = ("recipe", "max_shard_size", "hub_credential")
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    MAX_SHARD_SIZE_FIELD_NUMBER: _ClassVar[int]
    HUB_CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    recipe: str
    max_shard_size: int
    hub_credential: str
    def __init__(self, recipe: _Optional[str] = ..., max_shard_size: _Optional[int] = ..., hub_credential: _Optional[str] = ...) -> None: ...

class CreateMergeRequest(_message.Message):
    __slots__ = ("recipe", "max_shard_size", "threads", "retention", "request_id", "validate_only", "hub_credential")
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    MAX_SHARD_SIZE_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    RETENTION_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    HUB_CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    recipe: str
    max_shard_size: int
    threads: int
    retention: _merge_pb2.Retention
    request_id: str
    validate_only: bool
    hub_credential: str
    def __init__(self, recipe: _Optional[str] = ..., max_shard_size: _Optional[int] = ..., threads: _Optional[int] = ..., retention: _Optional[_Union[_merge_pb2.Retention, str]] = ..., request_id: _Optional[str] = ..., validate_only: bool = ..., hub_credential: _Optional[str] = ...) -> None: ...

class GetMergeRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListMergesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListMergesResponse(_message.Message):
    __slots__ = ("merges", "next_page_token")
    MERGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    merges: _containers.RepeatedCompositeFieldContainer[_merge_pb2.Merge]
    next_page_token: str
    def __init__(self, merges: _Optional[_Iterable[_Union[_merge_pb2.Merge, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchMergeRequest(_message.Message):
    __slots__ = ("name", "after_revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    AFTER_REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    after_revision: int
    def __init__(self, name: _Optional[str] = ..., after_revision: _Optional[int] = ...) -> None: ...

class WatchMergeResponse(_message.Message):
    __slots__ = ("merge",)
    MERGE_FIELD_NUMBER: _ClassVar[int]
    merge: _merge_pb2.Merge
    def __init__(self, merge: _Optional[_Union[_merge_pb2.Merge, _Mapping]] = ...) -> None: ...

class CancelMergeRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class DeleteMergeRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class PublishMergeRequest(_message.Message):
    __slots__ = ("name", "repository", "public", "revision", "pull_request", "tags", "message", "replace", "evaluation", "plot", "unevaluated", "credential", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REPOSITORY_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PULL_REQUEST_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    PLOT_FIELD_NUMBER: _ClassVar[int]
    UNEVALUATED_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    repository: str
    public: bool
    revision: str
    pull_request: bool
    tags: _containers.RepeatedScalarFieldContainer[str]
    message: str
    replace: bool
    evaluation: bytes
    plot: bytes
    unevaluated: bool
    credential: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., repository: _Optional[str] = ..., public: bool = ..., revision: _Optional[str] = ..., pull_request: bool = ..., tags: _Optional[_Iterable[str]] = ..., message: _Optional[str] = ..., replace: bool = ..., evaluation: _Optional[bytes] = ..., plot: _Optional[bytes] = ..., unevaluated: bool = ..., credential: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class PublishMergeResponse(_message.Message):
    __slots__ = ("publication",)
    PUBLICATION_FIELD_NUMBER: _ClassVar[int]
    publication: _merge_pb2.Publication
    def __init__(self, publication: _Optional[_Union[_merge_pb2.Publication, _Mapping]] = ...) -> None: ...

class CancelPublicationRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...
