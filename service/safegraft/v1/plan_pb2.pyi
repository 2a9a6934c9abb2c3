from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Plan(_message.Message):
    __slots__ = ("digest", "host_model", "files", "tensors", "warnings", "cost", "models")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    HOST_MODEL_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    digest: str
    host_model: str
    files: _containers.RepeatedCompositeFieldContainer[PlannedFile]
    tensors: _containers.RepeatedCompositeFieldContainer[PlannedTensor]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    cost: PlanCost
    models: _containers.RepeatedCompositeFieldContainer[PlannedModel]
    def __init__(self, digest: _Optional[str] = ..., host_model: _Optional[str] = ..., files: _Optional[_Iterable[_Union[PlannedFile, _Mapping]]] = ..., tensors: _Optional[_Iterable[_Union[PlannedTensor, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., cost: _Optional[_Union[PlanCost, _Mapping]] = ..., models: _Optional[_Iterable[_Union[PlannedModel, _Mapping]]] = ...) -> None: ...

class PlannedModel(_message.Message):
    __slots__ = ("reference", "name")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    reference: str
    name: str
    def __init__(self, reference: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class PlannedFile(_message.Message):
    __slots__ = ("name", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class PlannedTensor(_message.Message):
    __slots__ = ("name", "action", "method", "inputs", "dtype", "shape", "base", "rows_merged", "note")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[PlannedTensor.Action]
        ACTION_MERGE: _ClassVar[PlannedTensor.Action]
        ACTION_COPY: _ClassVar[PlannedTensor.Action]
    ACTION_UNSPECIFIED: PlannedTensor.Action
    ACTION_MERGE: PlannedTensor.Action
    ACTION_COPY: PlannedTensor.Action
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    ROWS_MERGED_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    name: str
    action: PlannedTensor.Action
    method: str
    inputs: _containers.RepeatedCompositeFieldContainer[TensorInput]
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    base: TensorInput
    rows_merged: int
    note: str
    def __init__(self, name: _Optional[str] = ..., action: _Optional[_Union[PlannedTensor.Action, str]] = ..., method: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[TensorInput, _Mapping]]] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., base: _Optional[_Union[TensorInput, _Mapping]] = ..., rows_merged: _Optional[int] = ..., note: _Optional[str] = ...) -> None: ...

class TensorInput(_message.Message):
    __slots__ = ("model", "tensor")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    model: str
    tensor: str
    def __init__(self, model: _Optional[str] = ..., tensor: _Optional[str] = ...) -> None: ...

class PlanCost(_message.Message):
    __slots__ = ("bytes_read", "bytes_written", "peak_memory_bytes", "merged_elements", "seconds")
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    BYTES_WRITTEN_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MERGED_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    bytes_read: int
    bytes_written: int
    peak_memory_bytes: int
    merged_elements: int
    seconds: float
    def __init__(self, bytes_read: _Optional[int] = ..., bytes_written: _Optional[int] = ..., peak_memory_bytes: _Optional[int] = ..., merged_elements: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...
