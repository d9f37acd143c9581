"""A tool of your own: Qwen-Agent's example, with nothing changed but where the base class comes from."""

import json

from tools.base import BaseTool, register_tool


@register_tool('my_image_gen')
class MyImageGen(BaseTool):
    description = 'AI画图工具,返回图片URL给用户'
    parameters = [{
        'name': 'prompt',
        'type': 'string',
        'description': '期望的图像内容的详细描述,注意描述必须用英文',
        'required': True
    }]

    def call(self, params: str, **kwargs) -> str:
        prompt = json.loads(params)['prompt']
        return json.dumps({'image_url': f'image/{prompt}'}, ensure_ascii=False)
