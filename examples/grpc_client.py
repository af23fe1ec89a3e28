"""A gRPC client of Darkroom, from its published proto alone: uploads a picture, watches it, searches by a text.

    pip install grpcio-tools
    python grpc_client.py FOLDER_OF_PROTO HOST:PORT PICTURE TEXT

The folder holds darkroom/rpc/v1/darkroom.proto; nothing of Darkroom is imported.
"""

import argparse
import sys

import grpc

CHUNK_BYTES = 256 * 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("folder", "target", "picture", "text"):
        parser.add_argument(name)
    asked = parser.parse_args()

    sys.path.insert(0, asked.folder)
    pb, services = grpc.protos_and_services("darkroom/rpc/v1/darkroom.proto")

    def messages():
        yield pb.UploadImageRequest(metadata=pb.UploadMetadata(filename=asked.picture, tags=["example"]))
        with open(asked.picture, "rb") as file:  # noqa: PTH123
            while chunk := file.read(CHUNK_BYTES):
                yield pb.UploadImageRequest(chunk=chunk)

    with grpc.insecure_channel(asked.target) as channel:
        darkroom = services.DarkroomStub(channel)
        try:
            image = darkroom.UploadImage(messages(), timeout=60).image
            print("accepted", image.id, "duplicate" if image.duplicate else "new")
            # Resumable: after a cut, call it again with the last `position` as last_event_id.
            for told in darkroom.WatchImage(pb.WatchImageRequest(image_id=image.id), timeout=300):
                print(told.event.type or "watching", told.position)
            image = darkroom.GetImage(pb.GetImageRequest(image_id=image.id), timeout=60)
            print(pb.ImageStatus.Name(image.status), image.error.detail)
            for hit in darkroom.Search(pb.SearchRequest(text=asked.text, limit=5), timeout=60).results:
                print(f"{hit.score:.3f}", hit.image.id, hit.image.filename)
        except grpc.RpcError as error:
            print(error.code().name, error.details(), file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
