"""The gRPC service and its client: a skin over the engine. The API itself is written down in protos/safegraft/v1.

Server, from the outside in
server.py        its life: lock the data folder, answer calls, stop without losing work
options.py       how it is told to run
guard.py         around every call: token, limits, errors
wiring.py        hangs the services into a gRPC server, with health and reflection
merges.py        MergeService
creation.py      CreateMerge: from a request to a stored merge
publish_request.py  PublishMerge: what a request asks for
artifacts.py     ArtifactService
reading.py       ReadFile: follow a growing file, or compute bytes for the call
requests.py      what requests must look like
convert.py       the server's data as messages of the API
house.py         what the services share

Behind the services
job.py           a merge as the server remembers it
jobs.py          merges as rows of a database
publication.py   a publication: what is asked for, and what the server remembers of it
publication_store.py  publications as rows beside the merges
database.py      the tables, and how older ones are brought up to date
runner.py        which merge is computed next, and what becomes of it
publications.py  which result is published next, and what becomes of it
pool.py          worker processes as the server sees them
worker.py        a worker process from within
allocator.py     keeps memory for messages from being returned after each
messages.py      what the two say to each other
ring.py          shared memory through which computed bytes pass
methods.py       methods and plugins as plain data
kept_files.py    a merge's files on disk, growing or complete
changes.py       wakes who waits for a merge to change
models.py        which models a recipe may name
remote_models.py opens those on the Hub and below URLs
remote_policy.py what of both is allowed, and named tokens
blobs.py         uploaded files and the checkpoints made of them

Both sides
status.py        errors as google.rpc.Status, and back
checksum.py      CRC-32C

Client
client.py        Client: typed, blocking, resumes by itself
resources.py     the API's resources as plain Python values
connection.py    the channel: typed stubs, errors, retries
download.py      files over connections that break; a whole merge into a folder
upload.py        a local checkpoint to the server
publishing.py    has the server publish, and waits for it
"""
