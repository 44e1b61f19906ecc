import "katex/dist/katex.min.css";
import "./style.css";
import { mount } from "svelte";
import App from "./App.svelte";
import { scenesOf } from "./data";
import { Model } from "./model.svelte";

const target = document.getElementById("app")!;
try {
  const scenes = scenesOf(document.getElementById("scenes")?.textContent);
  mount(App, { target, props: { model: new Model(scenes) } });
} catch (error) {
  const box = document.createElement("main");
  box.className = "refusal";
  box.setAttribute("role", "alert");
  const head = document.createElement("h1");
  head.textContent = "This page cannot show its numbers";
  const words = document.createElement("p");
  words.textContent = error instanceof Error ? error.message : String(error);
  box.append(head, words);
  target.replaceChildren(box);
}
