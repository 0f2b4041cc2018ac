"""The one process of this process that reads clips."""

from mmblocks.helper_process import Home

HOME = Home("mmblocks.data.video.reader", "reads clips")
