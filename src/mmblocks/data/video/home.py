"""The one helper process of this process that reads videos."""

from mmblocks.helper_process import HelperClient

HOME = HelperClient("mmblocks.data.video.reader_process", "reads videos")
