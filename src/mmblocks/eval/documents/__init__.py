"""Documents of benchmarks from local files, in the formats in which they are published."""

from mmblocks.eval.documents.layout import DocumentLayout
from mmblocks.eval.documents.reading import Documents, open_documents

__all__ = ["DocumentLayout", "Documents", "open_documents"]
