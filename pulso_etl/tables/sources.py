"""The columns of the source tables that the queries read, as BigQuery types them, by the placeholder that the queries use.

`pulso-etl check` analyses the queries against them. The tests and the embedded default make their source tables of them.
"""

from __future__ import annotations

SOURCES: dict[str, dict[str, str]] = {
    "dashboard_cobranzas": {
        "fecha_foto": "DATE",
        "archivo": "STRING",
        "cartera": "STRING",
        "servicio": "STRING",
        "cuentas": "INT64",
        "clientes": "INT64",
        "cuentas_gestionadas": "INT64",
        "cuentas_cd": "INT64",
        "cuentas_ci": "INT64",
        "cuentas_sc": "INT64",
        "cuentas_sg": "INT64",
        "cuentas_pdp": "INT64",
        "deuda_asig": "NUMERIC",
        "deuda_act": "NUMERIC",
        "recupero": "NUMERIC",
        "pct_cober": "FLOAT64",
        "pct_contac": "FLOAT64",
        "pct_cd": "FLOAT64",
        "pct_ci": "FLOAT64",
        "pct_conversion": "FLOAT64",
        "pct_efectividad": "FLOAT64",
        "pct_cierre": "FLOAT64",
        "inten": "FLOAT64",
        "fecha_procesamiento": "TIMESTAMP",
    },
    "asignaciones_clean": {
        "fecha_foto": "DATE",
        "periodo_mes": "STRING",
        "archivo": "STRING",
        "tipo_cartera": "STRING",
        "servicio": "STRING",
        "cuenta": "STRING",
        "cliente": "STRING",
        "deuda_inicial": "NUMERIC",
        "deuda_actual": "NUMERIC",
        "fecha_vencimiento": "DATE",
        "fecha_procesamiento": "TIMESTAMP",
    },
    "gestiones_unificadas": {
        "fecha_gestion": "DATE",
        "timestamp_gestion": "TIMESTAMP",
        "canal_origen": "STRING",
        "archivo": "STRING",
        "correo_agente": "STRING",
        "es_contacto_efectivo": "BOOL",
        "es_compromiso": "BOOL",
        "peso": "FLOAT64",
        "fecha_procesamiento": "TIMESTAMP",
    },
    "agentes": {"correo": "STRING", "nombre": "STRING", "dni": "STRING", "equipo": "STRING"},
}
