"""Clips read by a process of their own: the same answers, and whatever happens to that process, this one goes on."""

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest

from mmblocks.assets import find_media
from mmblocks.conversation import Conversation
from mmblocks.data.media.files import FileSlice
from mmblocks.data.records.lines import read_lines
from mmblocks.data.sample.processor import Processor
from mmblocks.data.video import read_frames, read_video_shape
from mmblocks.data.video.guarded import VideoReader
from mmblocks.data.video.home import HOME
from mmblocks.errors import ConfigError, DataError

LONG_FRAMES = 60


def write_clip(path, frames, height, width):
    """A video that gets brighter with every frame, quick to write."""
    with av.open(os.fspath(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"threads": "1", "preset": "ultrafast", "g": "20"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            picture = np.full((height, width, 3), 4 * number % 256, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def clip(folder):
    return write_clip(folder / "short.mp4", 12, 32, 64)


@pytest.fixture(scope="module")
def long_clip(folder):
    """Its 60 frames of 1280x720 are 158 MiB, which no machine decodes and hands over in 50 ms."""
    return write_clip(folder / "long.mp4", LONG_FRAMES, 720, 1280)


@pytest.fixture
def quarantine(tmp_path):
    return tmp_path / "run" / "quarantine.jsonl"


@pytest.fixture(autouse=True)
def no_reader_before_and_after():
    HOME.close()
    yield
    HOME.close()


@pytest.fixture
def running(clip):
    """The number of the reader process, which is up and idle."""
    VideoReader().read_shape(clip)
    return HOME.pid


def is_running(pid):
    """Whether a process is there and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def ends(pid, within_s=10.0):
    until = time.monotonic() + within_s
    while is_running(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return not is_running(pid)


def later(seconds, number, pid):
    """Send a signal, which a stopped process takes when it goes on (at once, if it is SIGKILL)."""

    def send():
        os.kill(pid, number)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    timer = threading.Timer(seconds, send)
    timer.start()
    return timer


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


# --- the same answers


@pytest.mark.parametrize("indices", [[0], [11, 0, 5, 5], range(12), [np.int64(3)], []])
def test_a_guarded_clip_has_the_shape_and_the_pixels_of_a_direct_one(clip, indices):
    reader = VideoReader()
    assert reader.read_shape(clip) == read_video_shape(clip)
    np.testing.assert_array_equal(reader.read_video_frames(clip, indices), read_frames(clip, indices))


def test_paths_bytes_slices_arrays_and_folders_are_read(clip, tmp_path, monkeypatch):
    data, pixels = clip.read_bytes(), read_frames(clip, range(12))
    (tmp_path / "shard.tar").write_bytes(b"before" + data + b"behind")
    monkeypatch.chdir(clip.parent)
    part = FileSlice(tmp_path / "shard.tar", 6, len(data), "short.mp4")
    for source in (str(clip), clip.name, data, part, pixels):
        assert VideoReader().read_shape(source).num_frames == 12
        np.testing.assert_array_equal(VideoReader().read_video_frames(source, [7, 2]), pixels[[7, 2]])


def test_a_relative_path_is_relative_to_where_the_asker_is_now(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"short\.mp4: there is no such file"):
        VideoReader().read_shape("short.mp4")
    monkeypatch.chdir(clip.parent)
    assert VideoReader().read_shape("short.mp4").num_frames == 12


@pytest.mark.parametrize("source", [None, 3, "missing.mp4", "http://127.0.0.1/a.mp4", "a\0b", b""])
def test_errors_are_those_of_a_direct_read(source):
    with pytest.raises(DataError) as direct:
        read_video_shape(source)
    with pytest.raises(DataError) as guarded:
        VideoReader().read_shape(source)
    assert str(guarded.value) == str(direct.value)


def test_one_process_reads_many_clips_and_imports_no_torch(clip):
    readers = set()
    for _ in range(3):
        VideoReader().read_video_frames(clip, [1])
        readers.add(HOME.pid)
    assert len(readers) == 1
    assert "libtorch" not in Path(f"/proc/{HOME.pid}/maps").read_text()


def test_threads_get_their_own_answers(clip):
    with ThreadPoolExecutor(4) as pool:
        for number, frames in enumerate(pool.map(lambda i: VideoReader().read_video_frames(clip, [i % 12]), range(24))):
            np.testing.assert_array_equal(frames, read_frames(clip, [number % 12]))


def test_a_processor_reads_its_clips_through_it(tiny_model):
    path = os.fspath(find_media("video.mp4"))
    said = [{"role": "user", "content": [{"type": "video", "video": path}, {"type": "text", "text": "what ?"}]}]
    guarded = Processor.from_model(tiny_model, video_reader=VideoReader(deadline_s=60.0))
    direct = Processor.from_model(tiny_model).make_prompt_sample(Conversation.from_messages(said))
    assert HOME.pid is None
    sample = pickle.loads(pickle.dumps(guarded)).make_prompt_sample(Conversation.from_messages(said))
    assert HOME.pid is not None
    assert sample.encoded.plans == direct.encoded.plans
    np.testing.assert_array_equal(sample.pixels, direct.pixels)


# --- videos that hang, crash or grow


def test_a_clip_that_hangs_is_given_up_at_the_deadline_and_the_next_one_is_read(clip, running):
    os.kill(running, signal.SIGSTOP)  # as if it hung
    began = time.monotonic()
    with pytest.raises(DataError, match=r"short\.mp4: reading it took longer than 0\.3 s; drop the record.*deadline_s"):
        VideoReader(deadline_s=0.3).read_video_frames(clip, [0])
    assert 0.3 <= time.monotonic() - began < 5
    assert not Path(f"/proc/{running}").exists()  # killed, and no zombie either
    assert len(VideoReader().read_video_frames(clip, [0, 1])) == 2


def test_a_clip_that_is_too_long_for_the_deadline_is_given_up(long_clip):
    with pytest.raises(DataError, match=r"long\.mp4: reading it took longer than 0\.05 s"):
        VideoReader(deadline_s=0.05).read_video_frames(long_clip, range(LONG_FRAMES))
    assert VideoReader().read_shape(long_clip).num_frames == LONG_FRAMES


@pytest.mark.parametrize("crash", [signal.SIGKILL, signal.SIGSEGV])
def test_a_reader_that_dies_once_in_mid_read_is_replaced_unseen(crash, clip, running, quarantine):
    os.kill(running, signal.SIGSTOP)
    crashing = later(0.2, crash, running)
    frames = VideoReader(quarantine=quarantine).read_video_frames(clip, [4, 9])
    crashing.join()
    np.testing.assert_array_equal(frames, read_frames(clip, [4, 9]))
    assert HOME.pid not in (None, running)
    assert not quarantine.exists()


@pytest.mark.parametrize("crash", [signal.SIGKILL, signal.SIGSEGV])
def test_a_clip_on_which_two_readers_die_is_refused_with_the_signal(crash, long_clip, quarantine):
    done = threading.Event()

    def kill_every_reader():
        while not done.wait(0.01):
            if HOME.pid is not None:
                os.kill(HOME.pid, crash)

    killer = threading.Thread(target=kill_every_reader)
    killer.start()
    try:
        with pytest.raises(
            DataError, match=rf"long\.mp4: the process reading it was ended by {crash.name} after .* s;"
        ):
            VideoReader(quarantine=quarantine).read_video_frames(long_clip, range(LONG_FRAMES))
    finally:
        done.set()
        killer.join()
    assert lines(quarantine)[0]["reason"].startswith(f"the process reading it was ended by {crash.name}")


def test_a_reader_that_died_while_idle_is_replaced(clip, running):
    os.kill(running, signal.SIGKILL)
    assert ends(running)
    assert VideoReader().read_shape(clip).num_frames == 12


def test_a_clip_that_takes_too_much_memory_is_refused(clip, long_clip):
    reader = VideoReader(memory_gib=0.15)
    assert len(reader.read_video_frames(clip, range(12))) == 12
    with pytest.raises(DataError, match=r"long\.mp4: reading it took more than 0\.15 GiB of memory.*memory_gib=0\.15"):
        reader.read_video_frames(long_clip, range(LONG_FRAMES))
    assert len(reader.read_video_frames(long_clip, [59])) == 1  # one frame fits


@pytest.fixture
def interruptible():
    """Ctrl-C raises, also where a shell has started the tests in the background and ignores it for them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_read_leaves_no_half_answer_behind(clip, running, interruptible):
    os.kill(running, signal.SIGSTOP)
    later(0.2, signal.SIGINT, os.getpid())
    with pytest.raises(KeyboardInterrupt):
        VideoReader().read_video_frames(clip, [0])
    np.testing.assert_array_equal(VideoReader().read_video_frames(clip, [3]), read_frames(clip, [3]))


def test_a_reader_that_cannot_start_is_no_fault_of_the_clip(clip, quarantine, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"the process that reads videos did not start \(.* exit code 1"):
        VideoReader(quarantine=quarantine).read_shape(clip)
    assert not quarantine.exists()


@pytest.mark.parametrize("wrong", [{"deadline_s": 0}, {"deadline_s": float("nan")}, {"memory_gib": -1}])
def test_a_bound_that_nothing_could_keep_is_refused(wrong):
    with pytest.raises(ConfigError, match=rf"clip reader: {next(iter(wrong))}=.*must be above 0"):
        VideoReader(**wrong)


# --- quarantine


def test_a_clip_that_hung_is_refused_at_once_and_read_again_when_its_line_is_deleted(clip, running, quarantine):
    reader = VideoReader(deadline_s=0.3, quarantine=quarantine)
    os.kill(running, signal.SIGSTOP)
    with pytest.raises(DataError, match=r"It stands in .*quarantine\.jsonl now; delete its line"):
        reader.read_video_frames(clip, [0])
    assert HOME.pid is None
    with pytest.raises(
        DataError, match=r"short\.mp4: in quarantine since 2.*took longer than 0\.3 s\. .*delete its line"
    ):
        reader.read_shape(clip)
    assert HOME.pid is None  # nothing was opened
    quarantine.write_text("")
    assert VideoReader(quarantine=quarantine).read_shape(clip).num_frames == 12


def test_a_clip_that_was_fetched_again_is_read_again(tmp_path, clip, quarantine):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"this is no clip" * 30)
    reader = VideoReader(quarantine=quarantine)
    with pytest.raises(DataError, match=r"bad\.mp4: not a clip"):
        reader.read_shape(bad)
    with pytest.raises(DataError, match=r"bad\.mp4: in quarantine since .*: not a clip"):
        reader.read_shape(bad)
    line = lines(quarantine)[0]
    assert (line["clip"], line["size"]) == (str(bad), 450)
    bad.write_bytes(clip.read_bytes())
    assert reader.read_shape(bad).num_frames == 12


def test_what_is_no_fault_of_the_clip_is_not_noted(clip, tmp_path, quarantine):
    reader = VideoReader(quarantine=quarantine)
    for ask in (
        lambda: reader.read_video_frames(clip, [12]),
        lambda: reader.read_shape(tmp_path / "none.mp4"),
        lambda: reader.read_shape(b"x"),
    ):
        with pytest.raises(DataError):
            ask()
    assert not quarantine.exists()


def test_a_torn_line_is_left_out_with_its_number(clip, quarantine, caplog):
    quarantine.parent.mkdir()
    quarantine.write_text('{"clip": "/a.mp4", "size": 1\n')
    assert VideoReader(quarantine=quarantine).read_shape(clip).num_frames == 12
    assert f"{quarantine}:1: not a JSON object" in caplog.text


def test_lines_of_many_processes_stay_whole(tmp_path):
    file = tmp_path / "list.jsonl"
    file.write_text('{"left": "open"}')  # as some editors leave it
    program = (
        "import sys; from pathlib import Path; from mmblocks.data.records.lines import append_lines\n"
        "for i in range(200): append_lines(Path(sys.argv[1]), [{'by': sys.argv[2], 'i': i, 'long': 'x' * 3000}])"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(file), str(n)]) for n in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    written = [(line["by"], line["i"]) for line in read_lines(file)[1:]]
    assert sorted(written) == sorted((str(n), i) for n in range(4) for i in range(200))


# --- processes that come and go


def script(tmp_path, text):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(text))
    return path


def test_forked_and_spawned_data_workers_read_with_readers_of_their_own(clip, tmp_path):
    path = script(
        tmp_path,
        """
        import os, sys
        import numpy as np
        from torch.utils.data import DataLoader
        from mmblocks.data.video import read_frames
        from mmblocks.data.video.home import HOME
        from mmblocks.data.video.guarded import ClipReader

        class Videos:
            def __init__(self, path): self.path, self.reader = path, ClipReader()
            def __len__(self): return 8
            def __getitem__(self, i): return self.reader.frames(self.path, [i]), HOME.pid

        if __name__ == "__main__":
            videos = Videos(sys.argv[1])
            mine = videos[0][1]
            for method, workers in (("fork", 2), ("spawn", 1)):
                found = list(DataLoader(videos, batch_size=None, num_workers=workers, multiprocessing_context=method))
                assert all(np.array_equal(f, read_frames(sys.argv[1], [i])) for i, (f, _) in enumerate(found))
                readers = {pid for _, pid in found}
                assert len(readers) == workers and mine not in readers, (mine, readers)
                print(*readers)
            assert videos[1][1] == mine
        """,
    )
    done = subprocess.run([sys.executable, "-W", "error::ResourceWarning", path, clip], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) == 3
    assert all(ends(int(pid)) for pid in done.stdout.split())


def test_a_reader_ends_when_its_owner_is_killed(clip, tmp_path):
    path = script(
        tmp_path,
        """
        import os, sys, time
        from mmblocks.data.video.home import HOME
        from mmblocks.data.video.guarded import ClipReader
        ClipReader().shape(sys.argv[1])
        if os.fork() == 0:  # a forked process holds no end of the pipes open
            time.sleep(60)
        print(HOME.pid, flush=True)
        time.sleep(60)
        """,
    )
    owner = subprocess.Popen([sys.executable, path, clip], stdout=subprocess.PIPE, text=True, start_new_session=True)
    with owner:
        pid = int(owner.stdout.readline())
        assert is_running(pid)
        owner.kill()
        assert ends(pid)
        os.killpg(owner.pid, signal.SIGKILL)


def test_a_reader_whose_owner_is_gone_ends_itself_in_mid_read(long_clip):
    request = {"cwd": None, "path": str(long_clip), "slice": None, "indices": list(range(LONG_FRAMES)), "alarm_s": 0.05}
    text = json.dumps(request).encode()
    command = [sys.executable, "-m", "mmblocks.data.video.reader"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        reader.stdin.write(struct.pack("<IQ", len(text), 0) + text)
        reader.stdin.flush()
        assert reader.wait(30) == -signal.SIGALRM
