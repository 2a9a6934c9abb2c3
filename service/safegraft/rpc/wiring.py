"""Hangs services into a server: ours, health and reflection. Generated code and gRPC's companions carry no types; here
they get theirs, and nowhere else does anybody touch them.
"""

from typing import Any, Protocol, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from safegraft.rpc.artifacts import ArtifactServicer
from safegraft.rpc.merges import MergeServicer
from safegraft.v1 import artifact_service_pb2, artifact_service_pb2_grpc, merge_service_pb2, merge_service_pb2_grpc

SERVICES = (
    merge_service_pb2.DESCRIPTOR.services_by_name["MergeService"].full_name,
    artifact_service_pb2.DESCRIPTOR.services_by_name["ArtifactService"].full_name,
)
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


class Health(Protocol):
    """The part of the health servicer that a server's life needs."""

    async def set(self, service: str, status: health_pb2.HealthCheckResponse.ServingStatus) -> None: ...

    async def enter_graceful_shutdown(self) -> None: ...


def add_services(server: grpc.aio.Server, merges: MergeServicer, artifacts: ArtifactServicer) -> Health:
    """Add everything that the server answers; returns the switch of its health."""
    companions = cast(Any, health)  # `aio` is missing in the stubs
    healthy = companions.aio.HealthServicer()
    for add, servicer in (
        (cast(Any, merge_service_pb2_grpc).add_MergeServiceServicer_to_server, merges),
        (cast(Any, artifact_service_pb2_grpc).add_ArtifactServiceServicer_to_server, artifacts),
        (cast(Any, health_pb2_grpc).add_HealthServicer_to_server, healthy),
    ):
        add(servicer, server)
    _add_reflection(server)
    return healthy


async def set_serving(healthy: Health) -> None:
    """From now on health checks, of the server and of each service, say SERVING."""
    for service in ("", *SERVICES):
        await healthy.set(service, health_pb2.HealthCheckResponse.SERVING)


def _add_reflection(server: grpc.aio.Server) -> None:
    """Reflection under both its names: grpcio-reflection serves v1alpha, newer tools ask for v1."""
    # v1 is not listed: it has no descriptor under that name, and tools that describe all that is listed would stumble.
    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer = cast(Any, reflection.aio.ReflectionServicer(service_names=names))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (REFLECTION_V1, reflection.SERVICE_NAME):
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )
