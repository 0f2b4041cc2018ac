"""Images and videos: their sizes without decoding, their pixels, the files and archives that hold them."""
