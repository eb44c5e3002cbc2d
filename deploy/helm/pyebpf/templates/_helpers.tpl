{{- define "pyebpf.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name }}{{ end }}
{{- end }}

{{- define "pyebpf.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "pyebpf.name" .) }}
{{- end }}

{{- define "pyebpf.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "pyebpf.labels" -}}
{{ include "pyebpf.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* A value of TOML: YAML's numbers are all floats to Helm, and TOML tells 19 from 19.0. */}}
{{- define "pyebpf.toml" -}}
{{- if kindIs "string" . }}{{ toJson . }}
{{- else if kindIs "slice" . }}[{{ range $i, $one := . }}{{ if $i }}, {{ end }}{{ include "pyebpf.toml" $one }}{{ end }}]
{{- else if and (kindIs "float64" .) (eq . (floor .)) }}{{ int64 . }}
{{- else }}{{ . }}
{{- end }}
{{- end }}

{{- /* The file of settings: plain ones first, then a section for each map. */}}
{{- define "pyebpf.settings" -}}
{{- $settings := deepCopy .Values.settings }}
{{- $pods := dict "source" .Values.pods.source }}
{{- if ne .Values.pods.source "kubernetes" }}
{{- $_ := set $pods "cri_socket" .Values.pods.criSocket }}
{{- end }}
{{- $serve := dict "listen" (printf "127.0.0.1:%v" .Values.ports.page) "probes" (printf "0.0.0.0:%v" .Values.ports.probes) }}
{{- $spool := dict "path" "/var/lib/pyebpf/spool" }}
{{- $settings = mergeOverwrite (dict "pods" $pods "serve" $serve "spool" $spool) $settings }}
{{- range $key, $value := $settings }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ include "pyebpf.toml" $value }}
{{- end }}
{{- end }}
{{- range $key, $section := $settings }}
{{- if kindIs "map" $section }}

[{{ $key }}]
{{- range $name, $value := $section }}
{{ $name }} = {{ include "pyebpf.toml" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
