"""MergeService: plan, create, look, follow, cancel, delete, publish. merge_service.proto says what each promises."""

import asyncio
from importlib.metadata import version

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from safegraft.errors import NotFoundError, Problem, UsageError
from safegraft.rpc import convert, requests
from safegraft.rpc.changes import wait
from safegraft.rpc.creation import free_bytes, plan_recipe, prepare, store
from safegraft.rpc.house import House
from safegraft.rpc.job import Job
from safegraft.rpc.messages import ListMethodsTask, MethodsListed
from safegraft.rpc.publish_request import read_request
from safegraft.rpc.reading import CHUNK_BYTES
from safegraft.v1 import merge_pb2, plan_pb2
from safegraft.v1 import merge_service_pb2 as pb
from safegraft.v1.merge_service_pb2_grpc import MergeServiceServicer

HEARTBEAT_SECONDS = 10.0


class MergeServicer(MergeServiceServicer):
    """Answers streams by `context.write`: a generator would be left hanging when its call is cancelled.

    What changes a merge is shielded: a client that goes away must not leave half of a change behind.
    """

    def __init__(self, house: House) -> None:
        self._house = house
        self._methods: pb.ListMethodsResponse | None = None

    async def GetServerInfo(
        self,
        request: pb.GetServerInfoRequest,
        context: "grpc.aio.ServicerContext[pb.GetServerInfoRequest, pb.ServerInfo]",
    ) -> pb.ServerInfo:
        options = self._house.options
        quota = options.max_upload_bytes
        return pb.ServerInfo(
            version=version("safegraft"),
            start_time=Timestamp(seconds=self._house.started // 1_000_000),
            model_roots=[root.name for root in options.models],
            workers=options.workers,
            max_chunk_bytes=CHUNK_BYTES,
            max_recipe_bytes=requests.MAX_RECIPE_BYTES,
            max_upload_bytes=quota,
            used_upload_bytes=await asyncio.to_thread(self._house.blobs.used) if quota else 0,
            upload_lifetime=Duration(seconds=int(options.upload_lifetime)),
            free_disk_bytes=await asyncio.to_thread(free_bytes, options.data),
            hub_models=options.hub,
            url_prefixes=options.urls,
            hub_credentials=[one.name for one in options.hub_credentials],
            publish_to=options.publish_to,
        )

    async def ListMethods(
        self,
        request: pb.ListMethodsRequest,
        context: "grpc.aio.ServicerContext[pb.ListMethodsRequest, pb.ListMethodsResponse]",
    ) -> pb.ListMethodsResponse:
        return await self._catalogue()

    async def GetMethod(
        self,
        request: pb.GetMethodRequest,
        context: "grpc.aio.ServicerContext[pb.GetMethodRequest, pb.MergeMethod]",
    ) -> pb.MergeMethod:
        for method in (await self._catalogue()).methods:
            if method.name == request.name:
                return method
        raise NotFoundError(
            Problem("name", f"this server has no method {request.name!r}; ListMethods says what it has")
        )

    async def _catalogue(self) -> pb.ListMethodsResponse:
        if self._methods is None:  # plugins are loaded once in a worker's life, too
            answer = await self._house.plans.run(ListMethodsTask())
            assert isinstance(answer, MethodsListed)
            self._methods = convert.method_list(answer.catalogue)
        return self._methods

    async def PlanMerge(
        self, request: pb.PlanMergeRequest, context: "grpc.aio.ServicerContext[pb.PlanMergeRequest, plan_pb2.Plan]"
    ) -> None:
        recipe = requests.recipe_text(request.recipe)
        credential = requests.credential(request.hub_credential, self._house.options, "hub_credential")
        planned = await plan_recipe(self._house, recipe, requests.shard_size(request.max_shard_size), credential)
        for part in await asyncio.to_thread(list, convert.plan_parts(planned.document)):
            await context.write(part)

    async def CreateMerge(
        self,
        request: pb.CreateMergeRequest,
        context: "grpc.aio.ServicerContext[pb.CreateMergeRequest, merge_pb2.Merge]",
    ) -> merge_pb2.Merge:
        job = await prepare(self._house, request)
        if not request.validate_only:
            job = await asyncio.shield(store(self._house, job))
        return await self._full(job)

    async def GetMerge(
        self, request: pb.GetMergeRequest, context: "grpc.aio.ServicerContext[pb.GetMergeRequest, merge_pb2.Merge]"
    ) -> merge_pb2.Merge:
        return await self._full(await self._house.job(requests.merge_id(request.name)))

    async def ListMerges(
        self,
        request: pb.ListMergesRequest,
        context: "grpc.aio.ServicerContext[pb.ListMergesRequest, pb.ListMergesResponse]",
    ) -> pb.ListMergesResponse:
        size = requests.page_size(request.page_size, 50, 500)
        jobs, token = await asyncio.to_thread(self._house.store.page, size, request.page_token)
        return pb.ListMergesResponse(merges=[convert.brief_merge(job) for job in jobs], next_page_token=token)

    async def WatchMerge(
        self,
        request: pb.WatchMergeRequest,
        context: "grpc.aio.ServicerContext[pb.WatchMergeRequest, pb.WatchMergeResponse]",
    ) -> None:
        id, seen = requests.merge_id(request.name), request.after_revision
        job = await self._house.job(id)
        if not 0 <= seen <= job.revision:
            raise UsageError(
                Problem("after_revision", f"must be 0 to {job.revision}, the merge's revision, not {seen}")
            )
        silent = True  # the first answer comes at once, whatever it is
        while True:
            change = self._house.changes.next(id)
            job = await self._house.job(id)
            if job.revision > seen:
                await context.write(pb.WatchMergeResponse(merge=convert.brief_merge(job)))
                seen = job.revision
            elif silent:
                await context.write(pb.WatchMergeResponse())
            if job.state.final:
                return
            self._house.refuse_when_stopping()
            silent = not await wait(change, HEARTBEAT_SECONDS)

    async def CancelMerge(
        self,
        request: pb.CancelMergeRequest,
        context: "grpc.aio.ServicerContext[pb.CancelMergeRequest, merge_pb2.Merge]",
    ) -> merge_pb2.Merge:
        id = requests.merge_id(request.name)
        return await self._full(await asyncio.shield(self._house.runner.cancel(id)))

    async def DeleteMerge(
        self, request: pb.DeleteMergeRequest, context: "grpc.aio.ServicerContext[pb.DeleteMergeRequest, Empty]"
    ) -> Empty:
        await asyncio.shield(self._house.delete(requests.merge_id(request.name)))
        return Empty()

    async def PublishMerge(
        self,
        request: pb.PublishMergeRequest,
        context: "grpc.aio.ServicerContext[pb.PublishMergeRequest, pb.PublishMergeResponse]",
    ) -> None:
        self._house.refuse_when_stopping()
        metadata = context.invocation_metadata() or ()
        asked = await asyncio.to_thread(read_request, request, metadata, self._house.options)
        one = await asyncio.shield(self._house.publisher.publish(asked))
        del asked  # with the caller's token
        await context.write(pb.PublishMergeResponse(publication=convert.publication(one)))
        while not one.state.final:
            change = self._house.changes.next(one.id)
            now = await self._house.publication(one.merge, one.id)
            if now.revision > one.revision:
                await context.write(pb.PublishMergeResponse(publication=convert.publication(now)))
                one = now
                continue
            self._house.refuse_when_stopping()
            if not await wait(change, HEARTBEAT_SECONDS):
                await context.write(pb.PublishMergeResponse())

    async def CancelPublication(
        self,
        request: pb.CancelPublicationRequest,
        context: "grpc.aio.ServicerContext[pb.CancelPublicationRequest, merge_pb2.Publication]",
    ) -> merge_pb2.Publication:
        merge, id = requests.publication_ids(request.name)
        return convert.publication(await asyncio.shield(self._house.publisher.cancel(merge, id)))

    async def _full(self, job: Job) -> merge_pb2.Merge:
        publications = await self._house.publications(job.id)
        return convert.full_merge(job, await self._house.files(job), publications)
