"""The one process of this process that reads clips."""

from mmblocks.helper_process import HelperClient

HOME = HelperClient("mmblocks.data.video.reader_process", "reads clips")
