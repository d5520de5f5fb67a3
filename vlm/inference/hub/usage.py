"""The example in Python of a model card."""

from __future__ import annotations

QUESTION = "What is this?"
USE = """\
```python
from PIL import Image
from transformers import {classes}

processor = AutoProcessor.from_pretrained("FOLDER"{trust})
model = {cls}.from_pretrained("FOLDER"{trust})
{text}
inputs = processor(images=Image.open("cat.jpg"), text=text, return_tensors="pt"{plain})
ids = model.generate(**inputs, max_new_tokens=40)
print(processor.batch_decode(ids, skip_special_tokens=True)[0])
```
"""


CHAT = f"""\
messages = [{{{{"role": "user", "content": [{{{{"type": "image"}}}}, {{{{"type": "text", "text": "{QUESTION}"}}}}]}}}}]
text = processor.{{template}}(messages, tokenize=False, add_generation_prompt=True)"""


def usage(cls: str, *, trust: bool, template: str = "apply_chat_template", prompt: str | None = None) -> str:
    """An example in Python; ``prompt`` is the whole text where the processor adds the image and the begin id itself."""
    return USE.format(
        cls=cls,
        classes=f"{cls}, AutoProcessor" if cls < "AutoProcessor" else f"AutoProcessor, {cls}",
        trust=", trust_remote_code=True" if trust else "",
        text=CHAT.format(template=template) if prompt is None else f"text = {prompt!r}",
        plain=", add_special_tokens=False" if prompt is None else "",
    )
