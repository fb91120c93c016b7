"""The worker on another machine: a class that Ray runs there as an actor, in a process of its own.

Ray sends the class itself and not its name, so that a machine without this package, or with an older one, can say so.
For the same reason it imports nothing of the package before ``load``, and answers with errors instead of raising them:
Ray would report what a constructor raises as a death.
"""

from __future__ import annotations


class AnnotationWorker:
    """One annotator. Ray calls its methods one at a time. Answers are bytes, which Ray does not pickle."""

    def where(self) -> bytes:
        """The place of this process, as JSON: address of the machine, its id in the cluster, pid."""
        import json
        import os

        import ray

        context = ray.get_runtime_context()
        place = {"address": ray.util.get_node_ip_address(), "node": context.get_node_id(), "pid": os.getpid()}
        return json.dumps(place).encode()

    def load(self, settings: bytes) -> bytes:
        """Load the annotator.

        Args:
            settings: written by ``wire.encode_settings``.

        Returns:
            JSON: the annotator's ``identity``, or ``failed``, the reason.
        """
        import json
        import logging
        import tempfile
        from pathlib import Path

        try:
            from lacy_stream.stream.workers import batch, wire

            logging.getLogger("annotator.tokenizers").setLevel(logging.ERROR)  # the trainer says it once
            with tempfile.TemporaryDirectory(prefix="lacy-stream-") as folder:
                self._annotator = batch.build_annotator(wire.decode_settings(settings, Path(folder)))
                return json.dumps({"identity": self._annotator.identity}).encode()
        except Exception as error:
            return json.dumps({"failed": f"{type(error).__name__}: {error}"}).encode()

    def annotate(self, message: bytes) -> bytes:
        """Annotate a batch: ``wire.encode_documents`` -> ``wire.encode_answer``."""
        import time

        from lacy_stream.stream.workers import batch, protocol, wire

        documents = wire.decode_documents(message)
        start = time.process_time()
        results, fallbacks = batch.annotate_and_name(self._annotator, documents)
        cpu_s = time.process_time() - start
        answer = protocol.Answer(results, cpu_s, self._annotator.stats(), fallbacks)
        return wire.encode_answer(answer, documents)

    def ping(self, message: bytes = b"") -> bytes:
        """Answer with the message: the process is alive."""
        return message
