# The public API: type checkers read this file, and so does lazy_loader when factory is imported.

from .config.load import load_specs as load_specs
from .config.schema import DomainSpec as DomainSpec
from .config.schema import FamilySpec as FamilySpec
from .config.schema import PoolSpec as PoolSpec
from .config.schema import Specs as Specs
from .errors import DataError as DataError
from .errors import ExportError as ExportError
from .errors import FactoryError as FactoryError
from .errors import GateError as GateError
from .errors import ModelResolutionError as ModelResolutionError
from .errors import RegistryError as RegistryError
from .errors import ServeError as ServeError
from .errors import SpecError as SpecError
from .errors import StorageError as StorageError
from .errors import TrainingError as TrainingError
from .errors import UsageError as UsageError
from .export.export import export_version as export_version
from .inference import ask as ask
from .inference import embed as embed
from .inference import load_chat_model as load_chat_model
from .inference import load_version as load_version
from .pipeline.build import BuildOptions as BuildOptions
from .pipeline.build import build_student as build_student
from .pipeline.context import BuildContext as BuildContext
from .pipeline.context import make_context as make_context
from .pipeline.context import resolve_models as resolve_models
from .pipeline.dataset import load_router as load_router
from .registry.manifest import BaseManifest as BaseManifest
from .registry.manifest import EvalReport as EvalReport
from .registry.manifest import MetricValue as MetricValue
from .registry.manifest import StudentManifest as StudentManifest
from .registry.manifest import Verdict as Verdict
from .registry.registry import Registry as Registry
from .registry.versions import Version as Version

__version__: str
