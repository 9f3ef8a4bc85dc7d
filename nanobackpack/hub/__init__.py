"""To other programs: models as those of the transformers library open them.

import nanobackpack.hub        # AutoModelForCausalLM.from_pretrained(FOLDER) then needs no trust_remote_code
"""

from importlib.util import find_spec

if find_spec("transformers"):
    from transformers import AutoConfig, AutoModelForCausalLM

    from nanobackpack.hub.modeling_backpack import BackpackConfig, BackpackForCausalLM

    AutoConfig.register(BackpackConfig.model_type, BackpackConfig)
    AutoModelForCausalLM.register(BackpackConfig, BackpackForCausalLM)
