//! A report that people like to read: one HTML file with tables and SVG plots, no script, nothing fetched.

mod plot;

use std::fmt::Write as _;
use std::path::Path;

pub(crate) use plot::{Band, Line, Plot};

const STYLE: &str = "
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.25rem .75rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}tr.own{font-weight:600;background:#eef6f0}
figure{margin:1rem 0}figcaption{color:#555;font-size:.9rem}svg{width:100%;height:auto}
";

/// A report in the making.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    title: String,
    body: String,
}

impl Report {
    /// An empty report.
    pub(crate) fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: String::new() }
    }

    /// Begins a section.
    pub(crate) fn section(&mut self, title: &str) -> &mut Self {
        self.body += &format!("<h2>{}</h2>\n", escape(title));
        self
    }

    /// A paragraph.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.body += &format!("<p>{}</p>\n", escape(text));
        self
    }

    /// A table; rows whose first cell is in `own` are set off.
    pub(crate) fn table(&mut self, head: &[&str], rows: &[Vec<String>], own: &[&str]) -> &mut Self {
        self.body += "<table><thead><tr>";
        for cell in head {
            let _ = write!(self.body, "<th>{}</th>", escape(cell));
        }
        self.body += "</tr></thead><tbody>\n";
        for row in rows {
            let class =
                if row.first().is_some_and(|first| own.contains(&first.as_str())) { " class=\"own\"" } else { "" };
            let _ = write!(self.body, "<tr{class}>");
            for cell in row {
                let _ = write!(self.body, "<td>{}</td>", escape(cell));
            }
            self.body += "</tr>\n";
        }
        self.body += "</tbody></table>\n";
        self
    }

    /// A plot with a caption.
    pub(crate) fn plot(&mut self, plot: &Plot, caption: &str) -> &mut Self {
        self.body += &format!("<figure>{}<figcaption>{}</figcaption></figure>\n", plot.svg(), escape(caption));
        self
    }

    /// The whole page.
    pub(crate) fn html(&self) -> String {
        let (title, body) = (escape(&self.title), &self.body);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title><style>{STYLE}</style></head>\n\
             <body><h1>{title}</h1>\n{body}</body></html>\n"
        )
    }

    /// Writes the page.
    pub(crate) fn write(&self, path: &Path) -> std::io::Result<()> {
        std::fs::write(path, self.html())
    }
}

/// Text as HTML and XML take it: series are named by whoever recorded them.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_a_file_are_text_and_not_markup() {
        let mut report = Report::new("<b>");
        report.section("a & b").table(&["x"], &[vec!["<script>".to_owned()]], &["<script>"]);
        let html = report.html();
        assert!(html.contains("<tr class=\"own\"><td>&lt;script&gt;</td></tr>"), "{html}");
        assert!(html.contains("<h1>&lt;b&gt;</h1>") && html.contains("a &amp; b") && !html.contains("<script"));
    }
}
