//! DeepSeek V3.2's conversation format, which its checkpoints carry as a Python program instead of a template.
//!
//! Source: mlx-lm `chat_templates/deepseek_v32.py`.

use serde_json::{Value as Json, json};

use super::ChatOptions;
use super::json::Dump;

const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";
const USER: &str = "<｜User｜>";
const ASSISTANT: &str = "<｜Assistant｜>";
const THINK: &str = "<think>";
const END_THINK: &str = "</think>";

/// What the model was trained to read before a list of tools.
const TOOLS_HEAD: &str = r#"## Tools

You have access to a set of tools you can use to answer the user's question.
You can invoke functions by writing a "<｜DSML｜function_calls>" block like the following as part of your reply to the user:
<｜DSML｜function_calls>
<｜DSML｜invoke name="$FUNCTION_NAME">
<｜DSML｜parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</｜DSML｜parameter>
...
</｜DSML｜invoke>
<｜DSML｜invoke name="$FUNCTION_NAME2">
...
</｜DSML｜invoke>
</｜DSML｜function_calls>

String and scalar parameters should be specified as is without any escaping or quotes, while lists and objects should use JSON format. The "string" attribute should be set to "true" for string type parameters and "false" for other types (numbers, booleans, arrays, objects).

If the thinking_mode is enabled, then after function results you should strongly consider outputting a thinking block. Here is an example:

<｜DSML｜function_calls>
...
</｜DSML｜function_calls>

<function_results>
...
</function_results>

<think>...thinking about results</think>

Here are the functions available in JSONSchema format:
<functions>
"#;

/// The prompt's text, or why there is none.
pub(super) fn render(messages: &[Json], options: &ChatOptions) -> Result<String, String> {
    if let Some(name) = options.variables.keys().find(|name| *name != "enable_thinking") {
        return Err(format!("this model's chat format has no variable `{name}`"));
    }
    let own = options.variables.get("enable_thinking").and_then(Json::as_bool);
    let thinks = own.or(options.enable_thinking).unwrap_or(true);
    let last_user = last_user(messages);
    // Reasoning of turns that are over is dropped.
    let mut kept = messages.to_vec();
    for (index, message) in kept.iter_mut().enumerate() {
        if !thinks || last_user.is_none_or(|last| index >= last) {
            break;
        }
        if role(message) == "developer" {
            return Err(format!("message {index}: a developer's message can only come last"));
        }
        if role(message) == "assistant" {
            message.as_object_mut().map(|fields| fields.remove("reasoning_content"));
        }
    }
    let conversation = Conversation { last_user, messages: &kept, thinks, options };
    let mut prompt = BOS.to_owned();
    for index in 0..kept.len() {
        prompt.push_str(&conversation.turn(index)?);
    }
    let ends_with_user = messages.last().is_some_and(|message| role(message) == "user");
    if !options.add_generation_prompt && ends_with_user {
        let header = format!("{ASSISTANT}{THINK}");
        if let Some(rest) = prompt.strip_suffix(&header) {
            return Ok(rest.to_owned());
        }
    }
    Ok(prompt)
}

struct Conversation<'a> {
    messages: &'a [Json],
    last_user: Option<usize>,
    thinks: bool,
    options: &'a ChatOptions,
}

impl Conversation<'_> {
    fn turn(&self, index: usize) -> Result<String, String> {
        let message = &self.messages[index];
        let is_last_user = Some(index) == self.last_user;
        let content = text(&message["content"])?;
        match role(message) {
            "system" => Ok(content + &self.instructions(message)?),
            "developer" if content.is_empty() => Err("a developer message is empty".to_owned()),
            "developer" => {
                let content = format!(
                    "{}\n\n# The user's message is: {content}",
                    self.instructions(message)?
                );
                Ok(format!("{USER}{content}{ASSISTANT}{}", self.mark(is_last_user)))
            }
            "user" => Ok(format!("{USER}{content}{ASSISTANT}{}", self.mark(is_last_user))),
            "tool" => self.result(index, &content),
            "assistant" => self.answer(index, &content),
            other => Err(format!("role `{other}` is not known")),
        }
    }

    /// What opens the assistant's text: reasoning, or the end of none.
    fn mark(&self, may_think: bool) -> &'static str {
        if self.thinks && may_think { THINK } else { END_THINK }
    }

    fn is_after_last_user(&self, index: usize) -> bool {
        self.last_user.is_none_or(|last| index > last)
    }

    /// Tools and the form of the answer.
    fn instructions(&self, message: &Json) -> Result<String, String> {
        let given = self.options.tools.as_deref().filter(|tools| !tools.is_empty());
        let tools = given.or_else(|| message["tools"].as_array().map(Vec::as_slice));
        let mut out = String::new();
        if let Some(tools) = tools.filter(|tools| !tools.is_empty()) {
            let schemas = tools
                .iter()
                .map(|tool| match tool.get("function") {
                    Some(function) => Ok(Dump::default().text_of(function)),
                    None => Err("a tool has no `function`".to_owned()),
                })
                .collect::<Result<Vec<_>, _>>()?;
            out = format!("\n\n{TOOLS_HEAD}{}\n</functions>\n", schemas.join("\n"));
        }
        let form = &message["response_format"];
        if is_truthy(form) {
            out.push_str(&format!(
                "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n{}",
                Dump::default().text_of(form)
            ));
        }
        Ok(out)
    }

    /// What a tool answered. Results follow the calls one by one.
    fn result(&self, index: usize, content: &str) -> Result<String, String> {
        let caller = self.messages[..index].iter().rposition(|message| role(message) != "tool");
        let calls = caller
            .filter(|caller| role(&self.messages[*caller]) == "assistant")
            .map(|caller| (caller, calls(&self.messages[caller]).len()));
        let Some((caller, count)) = calls.filter(|(caller, count)| index - caller <= *count) else {
            return Err(format!("message {index} is the result of a tool that was not called"));
        };
        let order = index - caller;
        let mut out = String::new();
        if order == 1 {
            out.push_str("\n\n<function_results>");
        }
        out.push_str(&format!("\n<result>{content}</result>"));
        if order == count {
            out.push_str("\n</function_results>\n\n");
            out.push_str(self.mark(self.last_user.is_none_or(|last| index >= last)));
        }
        Ok(out)
    }

    fn answer(&self, index: usize, content: &str) -> Result<String, String> {
        let message = &self.messages[index];
        let calls = calls(message);
        let reasoning = text(&message["reasoning_content"])?;
        let mut out = String::new();
        if self.thinks && self.is_after_last_user(index) {
            if reasoning.is_empty() && calls.is_empty() {
                return Err(format!(
                    "message {index} answers the last question without reasoning_content or tool_calls; \
                     turn enable_thinking off"
                ));
            }
            out = format!("{reasoning}{END_THINK}");
        }
        out.push_str(content);
        if !calls.is_empty() {
            let calls = calls.iter().map(invocation).collect::<Result<Vec<_>, _>>()?;
            out.push_str(&format!(
                "\n\n<｜DSML｜function_calls>\n{}\n</｜DSML｜function_calls>",
                calls.join("\n")
            ));
        }
        out.push_str(EOS);
        Ok(out)
    }
}

fn invocation(call: &Json) -> Result<String, String> {
    let function = &call["function"];
    let name = text(&function["name"])?;
    let arguments = match &function["arguments"] {
        Json::String(source) => serde_json::from_str(source)
            .map_err(|error| format!("the arguments of a call of `{name}` are no JSON: {error}"))?,
        other => other.clone(),
    };
    let Json::Object(arguments) = arguments else {
        return Err(format!("the arguments of a call of `{name}` are no object"));
    };
    let parameters: Vec<String> = arguments
        .iter()
        .map(|(key, value)| {
            let (is_text, value) = match value {
                Json::String(text) => (true, text.clone()),
                other => (false, Dump::default().text_of(other)),
            };
            format!(
                "<｜DSML｜parameter name=\"{key}\" string=\"{is_text}\">{value}</｜DSML｜parameter>"
            )
        })
        .collect();
    Ok(format!("<｜DSML｜invoke name=\"{name}\">\n{}\n</｜DSML｜invoke>", parameters.join("\n")))
}

fn role(message: &Json) -> &str {
    message["role"].as_str().unwrap_or_default()
}

fn calls(message: &Json) -> &[Json] {
    message["tool_calls"].as_array().map_or(&[], Vec::as_slice)
}

fn last_user(messages: &[Json]) -> Option<usize> {
    messages.iter().rposition(|message| ["user", "developer"].contains(&role(message)))
}

fn is_truthy(value: &Json) -> bool {
    *value != Json::Null && *value != json!({}) && *value != json!("") && *value != json!(false)
}

/// Text, or nothing.
fn text(value: &Json) -> Result<String, String> {
    match value {
        Json::Null => Ok(String::new()),
        Json::String(text) => Ok(text.clone()),
        other => Err(format!("{other} is no text")),
    }
}
