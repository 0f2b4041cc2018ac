from mmblocks.data.mixing.wrapped_sources import ConcatenatedSource
from mmblocks.data.records.columns import Columns
from mmblocks.data.records.file_patterns import find_files
from mmblocks.data.records.json_records import open_records
from mmblocks.data.records.llava_json import RecordFile
from mmblocks.data.records.named_media import MediaRoots
from mmblocks.data.records.row_reader import RowReader
from mmblocks.data.records.turns import Placement
from mmblocks.data.sources import Source, sources


@sources.register("messages", source="https://platform.openai.com/docs/api-reference/chat")
def messages(
    path: str | tuple[str, ...],
    images: str | None = None,
    videos: str | None = None,
    placement: Placement = "lone_first",
    frames_fps: float = 2.0,
    ignore: tuple[str, ...] = (),
) -> Source:
    """Chat-completions messages in .json or .jsonl files, with images and videos or plain text.

    A record is {"messages": [{"role", "content"}, ...]} or the list alone. Content is a text, in which <image> and
    <video> stand for the record's "images" and "videos", or a list of parts; a part of type image, video, image_url or
    video_url names its own file or takes the record's next one. Parts stay where they are written; the other settings
    are those of `llava_json`.
    """
    files = find_files(path)
    columns = Columns(ignore=ignore)
    readers = [
        RowReader(columns, MediaRoots.from_settings(f.parent, images, videos, frames_fps), placement) for f in files
    ]
    read = [RecordFile(file, open_records(file), reader) for file, reader in zip(files, readers, strict=True)]
    return read[0] if len(read) == 1 else ConcatenatedSource(read, [str(file) for file in files])
