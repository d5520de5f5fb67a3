"""The example in Python of a model card."""

from __future__ import annotations

USE = """\
```python
from PIL import Image
from transformers import {classes}

processor = AutoProcessor.from_pretrained("FOLDER"{trust})
model = {cls}.from_pretrained("FOLDER"{trust})
messages = [{{"role": "user", "content": [{{"type": "image"}}, {{"type": "text", "text": "What is this?"}}]}}]
text = processor.{template}(messages, tokenize=False, add_generation_prompt=True)
inputs = processor(images=Image.open("cat.jpg"), text=text, return_tensors="pt"{plain})
ids = model.generate(**inputs, max_new_tokens=40)
print(processor.batch_decode(ids, skip_special_tokens=True)[0])
```
"""


def usage(cls: str, *, trust: bool, template: str = "apply_chat_template") -> str:
    """An example in Python."""
    return USE.format(
        cls=cls,
        classes=f"{cls}, AutoProcessor" if cls < "AutoProcessor" else f"AutoProcessor, {cls}",
        trust=", trust_remote_code=True" if trust else "",
        template=template,
        plain=", add_special_tokens=False",
    )
