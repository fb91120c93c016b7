"""engine"""
from annotator.engine.engine import Engine
